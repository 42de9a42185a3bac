"""How networks execute fast: lean chains of units, stacked fusions, and ``accelerate`` for models that exist."""

from hrnet_fast.training.accelerate import Block, Report, accelerate, explain, restore

__all__ = ["Block", "Report", "accelerate", "explain", "restore"]
