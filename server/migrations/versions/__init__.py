"""One revision a file, each naming the one before it."""
