"""SNIP (Lee et al. 2019) in a federation: pruned once, by what the first round says of weights."""
