"""Studies of the positional kernel (Nabiev & Frolov 2026)."""
