"""Full-corpus scoring, ranks, metrics, significance, stability, beyond-accuracy."""
