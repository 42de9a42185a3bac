"""The report of a training run: curves, figures by epoch, and its best and worst examples, as PNG and HTML."""

from hrnet_fast.training_report.curves import draw_curves
from hrnet_fast.training_report.examples import Example, draw_examples, legend
from hrnet_fast.training_report.page import write_training_report

__all__ = ["Example", "draw_curves", "draw_examples", "legend", "write_training_report"]
