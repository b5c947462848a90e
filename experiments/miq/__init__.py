"""Experiments of MIQ-Attn."""
