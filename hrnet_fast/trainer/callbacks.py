"""What a run tells while it goes on: ``Callback``, and a sink for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import MissingPackageError


class Callback:
    """Receives what happens in a run, in its first process. Methods do nothing here; an exception ends the run."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Receive a record behind its line in ``log.jsonl``."""

    def iteration(self, done: int, total: int) -> None:
        """Receive the number of updates done, after each."""

    def evaluation(self, done: int, total: int) -> None:
        """Receive the number of samples evaluated, while an evaluation goes on."""

    def close(self) -> None:
        """The run ends, for whatever reason."""


class TensorBoard(Callback):
    """Writes losses, rates, speeds and figures for TensorBoard.

    Args:
        folder: where its event files go.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "TensorBoard's files need the package tensorboard, which is not installed: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(os.fspath(folder))  # type: ignore[no-untyped-call]

    def record(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of steps by iteration, and those of evaluations by epoch."""
        if record["kind"] == "step":
            for name in ("loss", "lr", "images_per_second", "wait_share"):
                if record[name] is not None:
                    self._writer.add_scalar(name, record[name], record["iteration"])  # type: ignore[no-untyped-call]
        elif record["kind"] == "evaluation":
            for name, value in record["figures"].items():
                if isinstance(value, (int, float)):
                    tag = f"{record['weights']}/{name}"
                    self._writer.add_scalar(tag, value, record["epoch"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the files."""
        self._writer.close()  # type: ignore[no-untyped-call]
