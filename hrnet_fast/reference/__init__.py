"""HRNet in plain PyTorch: the oracle that every accelerated implementation is tested against."""

from hrnet_fast.reference.hrnet import HRNetReference

__all__ = ["HRNetReference"]
