"""PruneFL (Jiang et al. 2022): one mask for all, chosen by risk reduction per second."""
