"""What to try next, from what has been seen: pure, and independent of any host."""
