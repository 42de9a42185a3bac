"""The demonstration: upstream checkpoints on a real photograph, every way of executing them that this machine has."""

from hrnet_fast.demo.measurement import DEMO_TASKS, run_demo
from hrnet_fast.demo.report import write_report

__all__ = ["DEMO_TASKS", "run_demo", "write_report"]
