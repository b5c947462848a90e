"""Training: configuration, compiled steps, the loop, checkpoints."""
