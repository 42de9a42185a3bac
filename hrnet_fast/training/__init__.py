"""Fused training and evaluation of existing networks: ``accelerate``, ``GraphedStep`` and losses."""

from hrnet_fast.training import losses
from hrnet_fast.training.accelerate import Block, Report, accelerate, explain, restore
from hrnet_fast.training.graphed_step import GraphedStep, GraphedStepWarning
from hrnet_fast.training.step_policy import StepReport

__all__ = [
    "Block", "GraphedStep", "GraphedStepWarning", "Report", "StepReport", "accelerate", "explain", "losses", "restore",
]  # fmt: skip
