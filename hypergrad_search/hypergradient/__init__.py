"""Ways to the gradient of a training run, one file each."""
