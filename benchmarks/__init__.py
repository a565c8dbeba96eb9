"""One scenario a file; `python -m benchmarks` lists and runs them."""
