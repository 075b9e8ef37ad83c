"""The entry point of `hypergrad`: where a package is missing, it says in one line what to install."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from hypergrad_studies import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hypergrad"):
            raise
        sys.exit(f"hypergrad: {error.name} is not installed; pip install 'hypergrad-search[studies]'")
    cli.main()
