"""The wire format: payload bytes, chunks, messages and errors (prose in proto/README.md)."""
