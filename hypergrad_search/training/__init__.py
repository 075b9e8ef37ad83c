"""The inner loop: training in exactly reversible arithmetic, and in floats."""
