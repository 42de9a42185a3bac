"""Fused training and evaluation of existing networks: ``accelerate``, its autograd functions, and losses."""

from hrnet_fast.training import losses
from hrnet_fast.training.accelerate import Block, Report, accelerate, explain, restore

__all__ = ["Block", "Report", "accelerate", "explain", "losses", "restore"]
