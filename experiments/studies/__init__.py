"""Studies: comparisons of trained models."""
