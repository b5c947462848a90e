"""Experiments on AWRSR, attention weight refinement."""
