"""Inference: a network as a plan of few, large steps, and the engine that runs it."""

from hrnet_fast.inference.engine import Engine
from hrnet_fast.inference.evaluation import flip_test, multi_scale
from hrnet_fast.inference.optimize import optimize_for_inference

__all__ = ["Engine", "flip_test", "multi_scale", "optimize_for_inference"]
