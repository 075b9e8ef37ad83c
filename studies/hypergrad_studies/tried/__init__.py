"""Ideas for the search in few dimensions that were tried; `docs/tried.md` says what came out of each."""
