"""Scaling of training steps over sizes and devices."""
