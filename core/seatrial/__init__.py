"""What every part of Seatrial shares: errors, tensors, bundles, the registry, settings and the command line."""

__version__ = "0.1.0"
