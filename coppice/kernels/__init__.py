"""Sparse training that really takes less time and memory, by a small C library."""
