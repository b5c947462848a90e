"""Reliability campaign: killed runs, bad inputs, damaged files, exhausted disks and descriptors."""
