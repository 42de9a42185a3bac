"""Files as trainers write them: mmengine's and timm's by their own code, mmpose's contents, the face net's modules."""

from __future__ import annotations

import argparse
import contextlib
import enum
import logging
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_states import State, assert_equal_states, state_of
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load
from tiny_networks import enliven, tiny, two_stages
from torch import nn
from torch.utils.data import DataLoader

import hrnet_fast as hf
from hrnet_fast.checkpoints import parse_checkpoint


def equal(actual: State, expected: State) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[k], v) for k, v in expected.items())


class Detector(BaseModel):
    """A model of mmengine around a small HRNet."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = two_stages("features")

    def forward(self, x: torch.Tensor, mode: str = "loss") -> dict[str, torch.Tensor]:
        return {"loss": sum((o.square().mean() for o in self.backbone(x)), torch.zeros(()))}


@contextlib.contextmanager
def mmengine_logging() -> Iterator[None]:
    """Leave the root logger as it was: mmengine's runner sets handlers of its own."""
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, State]:
    """A file of mmengine's runner with EMA, and the trained and the averaged backbone that it had in memory."""
    folder = tmp_path_factory.mktemp("mmengine")
    images = [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with mmengine_logging():
        runner = Runner(
            Detector(),
            str(folder),
            train_dataloader=DataLoader(images, batch_size=2, collate_fn=lambda b: {"x": torch.stack(b)}),
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            train_cfg={"by_epoch": False, "max_iters": 3},
            custom_hooks=[{"type": "EMAHook", "momentum": 0.3}],
            default_hooks={
                "checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False},
                "logger": {"type": "LoggerHook", "interval": 1},
            },
            experiment_name=folder.name,
            log_level="ERROR",
        )
        runner.train()
    (hook,) = (h for h in runner.hooks if isinstance(h, EMAHook))
    averaged = hook.ema_model.module.backbone.state_dict()
    return folder / "iter_3.pth", runner.model.backbone.state_dict(), averaged


@pytest.mark.slow
def test_files_of_mmengine_runner(trained: tuple[Path, State, State]) -> None:
    path, raw, ema = trained
    assert not equal(raw, ema)
    hub = torch.load(path, weights_only=False)["message_hub"]
    assert any(isinstance(v, HistoryBuffer) for v in hub["log_scalars"].values())
    assert equal(parse_checkpoint(path, weights="raw").state, raw)
    assert equal(parse_checkpoint(path, weights="ema").state, ema)
    auto = parse_checkpoint(path)
    assert "took the averaged (EMA) weights ('state_dict'), as mmengine's own loader does" in auto.notes[0]
    theirs = Detector()
    with pytest.MonkeyPatch.context() as patch:  # mmengine 0.10.7 leaves weights_only to torch, which then refuses
        load = torch.load
        patch.setattr(torch, "load", lambda *a, **k: load(*a, **{**k, "weights_only": False}))
        mmengine_load(theirs, str(path), map_location="cpu")
    assert equal(auto.state, theirs.backbone.state_dict())


def test_a_renamed_average_is_not_mixed_with_the_trained_weights(trained: tuple[Path, State, State]) -> None:
    data = torch.load(trained[0], weights_only=False)
    data["ema_state_dict"]["modulex.backbone.conv2.weight"] = data["ema_state_dict"].pop("module.backbone.conv2.weight")
    assert equal(parse_checkpoint(data).state, trained[2])
    with pytest.raises(hf.CheckpointError, match=r"missing .*conv2\.weight"):
        parse_checkpoint(data, weights="raw")


class Precision(enum.Enum):
    HALF = "half"


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("averaged", [True, False])
def test_files_of_timm_saver(averaged: bool, tmp_path: Path) -> None:
    from timm.models import load_checkpoint as timm_load
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = tiny("c")
    average = ModelEmaV3(model) if averaged else None
    if average is not None:
        enliven(average.module, seed=1)
    arguments = argparse.Namespace(
        model="hrnet_w18", output=pathlib.PurePosixPath("out"), precision=Precision.HALF, lr=np.float64(0.1)
    )
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        args=arguments,
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=np.float32(0.5))
    path = tmp_path / "last.pth.tar"
    auto = parse_checkpoint(path)
    theirs = tiny("c")
    timm_load(theirs, str(path), weights_only=False)
    assert equal(auto.state, theirs.state_dict())
    assert equal(parse_checkpoint(path, weights="raw").state, model.state_dict())
    if average is None:
        assert auto.notes == ()
        with pytest.raises(hf.CheckpointError, match=r"weights='ema': the checkpoint has no averaged weights"):
            parse_checkpoint(path, weights="ema")
        return
    assert "took the averaged (EMA) weights ('state_dict_ema'), as timm's own loader does" in auto.notes[0]
    assert equal(parse_checkpoint(path, weights="ema").state, average.module.state_dict())
    timm_load(theirs, str(path), use_ema=False, weights_only=False)
    assert equal(parse_checkpoint(path, weights="raw").state, theirs.state_dict())


class Config(dict[str, Any]):
    """As mmengine's and omegaconf's: a dictionary with attributes."""


class Names(OrderedDict[str, Any]):
    pass


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    """mmpose's ``dataset_meta``, Lightning's ``hyper_parameters``, and other objects of Python and numpy."""
    state = state_of("mmpose")
    meta = {"dataset_meta": {"sigmas": np.ones(17), "flip_indices": np.arange(17), "names": np.array(["a", "b"])}}
    path = tmp_path / "net.pth"
    beside = {
        "meta": meta,
        "hyper_parameters": Config(lr=np.float32(0.1), path=pathlib.PurePosixPath("data"), mode=Precision.HALF),
        "counts": defaultdict(int, a=1),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "kept": {1, 2},
        "frozen": frozenset({(1, "a")}),
        "raw": b"bytes",
        "time": np.datetime64("2020-01-01"),
        "size": torch.Size([1, 2]),
        "complex": 1j,
        "function": torch.relu,
        "class": nn.Conv2d,
        "slice": slice(1, 2),
        "state_dict": Names(state),
    }
    for protocol in (2, 4):
        torch.save(beside, path, pickle_protocol=protocol)
        loaded = hf.load_checkpoint(path)
        assert_equal_states(hf.convert_checkpoint(path, to="mmpose"), state)
        assert loaded.notes == ()


@pytest.mark.no_cover
@pytest.mark.slow
def test_the_face_repository_saves_whole_modules(tmp_path: Path) -> None:
    """``model_best.pth`` is a module; ``checkpoint_N.pth`` holds one under ``state_dict``, in DataParallel."""
    model = tiny("face")
    model.register_buffer("scratch", torch.ones(2), persistent=False)
    expected = model.state_dict()
    values = (
        model,
        nn.DataParallel(model),
        {"state_dict": nn.DataParallel(model), "epoch": 1, "best_nme": np.float64(1)},
    )
    for zipped in (True, False):
        for value in values:
            torch.save(value, tmp_path / "model_best.pth", _use_new_zipfile_serialization=zipped)
            loaded = hf.load_checkpoint(tmp_path / "model_best.pth")
            assert loaded.family == "face"
            assert_equal_states(loaded.state_dict(), expected)
            assert any("a whole pickled module" in note and "no code run" in note for note in loaded.notes)
