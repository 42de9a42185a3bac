"""Inference: a network as a plan of few, large steps, and the engine that runs it."""

from hrnet_fast.inference.engine import Engine
from hrnet_fast.inference.optimize import optimize_for_inference
from hrnet_fast.inference.test_time_augmentation import flip_test, multi_scale

__all__ = ["Engine", "flip_test", "multi_scale", "optimize_for_inference"]
