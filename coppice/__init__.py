"""What the server and the devices share: tensors, models, methods and the wire format."""

__version__ = "0.1.0"
