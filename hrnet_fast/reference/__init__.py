"""HRNet in plain PyTorch: the oracle that every fast path is held to.

Imports torch, the configuration and the errors only, and is imported by nothing that computes fast.
"""

from hrnet_fast.reference.hrnet import HRNetReference

__all__ = ["HRNetReference"]
