"""The store's tables through time; `versions/` has one file for each change."""
