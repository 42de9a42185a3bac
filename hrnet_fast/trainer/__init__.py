"""The training loop of ``hrnet-fast train``: plain PyTorch, resumable, for one device or several."""

from hrnet_fast.trainer.callbacks import Callback, TensorBoard
from hrnet_fast.trainer.loop import TrainingOutcome, train
from hrnet_fast.trainer.records import read_log
from hrnet_fast.trainer.task import TrainingTask

__all__ = ["Callback", "TensorBoard", "TrainingOutcome", "TrainingTask", "read_log", "train"]
