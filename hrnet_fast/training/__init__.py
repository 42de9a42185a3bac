"""Fused training and evaluation of existing networks: ``accelerate``, and the autograd functions behind it."""

from hrnet_fast.training.accelerate import Block, Report, accelerate, explain, restore

__all__ = ["Block", "Report", "accelerate", "explain", "restore"]
