"""Iterative magnitude pruning (Han et al. 2015): the smallest weights go, step by step."""
