"""What a run says of the weights that it begins from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from made_task import MadeTask, recipe
from tiny_networks import tiny, tiny_config
from torch import nn

import hrnet_fast as hf
from hrnet_fast.trainer import read_log, train
from hrnet_fast.trainer.network import initialised


def test_what_a_checkpoint_gave_is_logged_and_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "pose.pth"
    torch.save(tiny("v1", 4).state_dict(), file)

    class Begun(MadeTask):
        def make_model(self) -> nn.Module:
            return initialised(hf.HRNet(tiny_config("v1", num_outputs=1), impl="reference"), file)

    logger = logging.getLogger("hrnet_fast.trainer")
    logger.addHandler(caplog.handler)
    try:
        train(Begun(network="whole"), recipe(epochs=1), tmp_path / "run")
    finally:
        logger.removeHandler(caplog.handler)
    expected = f"initialised with all layers of {file}; final_layer have random weights"
    assert (expected, logging.WARNING) in {(one.getMessage(), one.levelno) for one in caplog.records}
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["notes"][-1] == expected
