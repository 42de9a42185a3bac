"""Which weights load of a file that holds averaged ones as well, or alone: torch, Lightning, mmcv, and others.

torch's averages are made by its own code. Lightning's and mmcv's files have the structure that their callbacks give
them (``WeightAveraging.on_save_checkpoint``, ``EMAHook.before_run``). timm and mmengine have tests of their own.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from family_states import State, assert_equal_states, state_of
from tiny_networks import enliven, tiny
from torch import nn

import hrnet_fast as hf


def other(state: State) -> State:
    """Weights that differ from `state` in every floating tensor."""
    return {k: v + 1 if v.is_floating_point() else v.clone() for k, v in state.items()}


def equal(actual: State, expected: State) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[k], v) for k, v in expected.items())


def both(value: Any, path: Path) -> tuple[State, State, State]:
    """Save `value`, and return what "auto", "raw" and "ema" load of it."""
    torch.save(value, path)
    auto, raw, ema = (hf.load_checkpoint(path, weights=w).state_dict() for w in ("auto", "raw", "ema"))
    return auto, raw, ema


class Config(dict[str, Any]):
    """As Lightning's ``AttributeDict``."""


@pytest.mark.slow
def test_averaged_models_of_torch(tmp_path: Path) -> None:
    """``swa_utils.AveragedModel`` alone: averages, and nothing else."""
    model = tiny("v1")
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda a, m, n: (a + m) / 2, use_buffers=False)
    average.update_parameters(model)
    enliven(model, seed=1)
    average.update_parameters(model)
    expected = average.module.state_dict()
    for value in (average.state_dict(), {"model": average.state_dict()}, nn.DataParallel(average).state_dict()):
        torch.save(value, tmp_path / "net.pth")
        loaded = hf.load_checkpoint(tmp_path / "net.pth")
        assert_equal_states(loaded.state_dict(), expected)
        assert any("averaged (EMA) weights alone" in note for note in loaded.notes)
        assert_equal_states(hf.load_checkpoint(tmp_path / "net.pth", weights="ema").state_dict(), expected)
        with pytest.raises(hf.CheckpointError, match=r"weights='raw' asks for .* alone"):
            hf.load_checkpoint(tmp_path / "net.pth", weights="raw")


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict", "ema", "swa_state_dict"])
def test_averages_alone(key: str, tmp_path: Path) -> None:
    state = state_of("pose")
    torch.save({key: state}, tmp_path / "net.pth")
    loaded = hf.load_checkpoint(tmp_path / "net.pth")
    assert_equal_states(loaded.state_dict(), state)
    assert loaded.notes == (f"the checkpoint holds averaged (EMA) weights alone ({key!r}); they were taken",)
    with pytest.raises(hf.CheckpointError, match=rf"averaged \(EMA\) weights alone \({key!r}\)"):
        hf.load_checkpoint(tmp_path / "net.pth", weights="raw")


@pytest.mark.slow
def test_averages_of_an_unknown_loop_are_offered(tmp_path: Path) -> None:
    """No upstream says which to take: the trained weights, and a note."""
    state = state_of("pose")
    auto, raw, ema = both({"model": state, "ema": {"module": other(state)} | other(state)}, tmp_path / "net.pth")
    assert equal(auto, state)
    assert equal(raw, state)
    assert equal(ema, other(state))
    assert "weights='ema' takes" in hf.load_checkpoint(tmp_path / "net.pth").notes[0]


@pytest.mark.slow
def test_averages_inside_a_training_module(tmp_path: Path) -> None:
    state = state_of("pose")
    inside = {f"model.{k}": v for k, v in state.items()} | {f"ema_model.module.{k}": v for k, v in other(state).items()}
    inside["ema_model.n_averaged"] = torch.tensor(3)
    auto, raw, ema = both({"state_dict": inside}, tmp_path / "net.ckpt")
    assert equal(auto, state)
    assert equal(raw, state)
    assert equal(ema, other(state))


def lightning(state: State, **changes: Any) -> dict[str, Any]:
    named = {f"model.{k}": v for k, v in state.items()}
    return {"state_dict": named, "callbacks": {}, "hyper_parameters": Config(lr=0.1), "loops": {}} | changes


@pytest.mark.slow
def test_files_of_lightning_weight_averaging(tmp_path: Path) -> None:
    state = state_of("pose")
    current = {f"model.{k}": v for k, v in other(state).items()}
    file = lightning(state, current_model_state=current, averaging_state={"n_averaged": torch.tensor(3)})
    auto, raw, ema = both(file, tmp_path / "net.ckpt")
    assert equal(auto, state)
    assert equal(raw, other(state))
    assert equal(ema, state)


@pytest.mark.slow
def test_files_of_lightning_ema_callbacks(tmp_path: Path) -> None:
    """A list in the order of the state_dict, as NeMo's callback keeps it; one that does not fit is no choice."""
    state = state_of("pose")
    averages = list(other(state).values())
    auto, raw, ema = both(lightning(state, callbacks={"EMA": {"ema_weights": averages}}), tmp_path / "net.ckpt")
    assert equal(auto, state)
    assert equal(raw, state)
    assert equal(ema, other(state))
    named = {"EMACallback": {"ema_state_dict": {f"model.{k}": v for k, v in other(state).items()}}}
    auto, raw, ema = both(lightning(state, callbacks=named), tmp_path / "net.ckpt")
    assert equal(auto, state)
    assert equal(raw, state)
    assert equal(ema, other(state))
    torch.save(lightning(state, callbacks={"EMA": {"ema_weights": averages[1:]}}), tmp_path / "net.ckpt")
    with pytest.raises(hf.CheckpointError, match="no averaged weights"):
        hf.load_checkpoint(tmp_path / "net.ckpt", weights="ema")


@pytest.mark.slow
def test_ema_buffers_of_mmcv(tmp_path: Path) -> None:
    """mmcv saves the averages under the parameters' names, and the trained weights in buffers."""
    model = hf.FAMILIES["mmpose_0x"].from_canonical
    state = state_of("mmpose_0x")
    parameters = [k for k in state if k.endswith((".weight", ".bias"))]
    buffers = {"ema_" + k.replace(".", "_"): state[k] + 1 for k in parameters}
    file = {"meta": {}, "state_dict": state | buffers}
    auto, raw, ema = both(file, tmp_path / "net.pth")
    assert equal(model(auto), state)
    assert equal(model(ema), state)
    assert equal(model(raw), state | {k: state[k] + 1 for k in parameters})
    assert "as mmcv's own loader does" in hf.load_checkpoint(tmp_path / "net.pth").notes[0]
    del file["state_dict"]["ema_backbone_conv1_weight"]
    assert equal(model(hf.load_checkpoint(file).state_dict()), state)
    with pytest.raises(hf.CheckpointError, match="ema_ buffers beside them do not fit"):
        hf.load_checkpoint(file, weights="raw")


@pytest.mark.parametrize(
    "beside",
    [
        {"callbacks": {"EMA": {"ema_weights": torch.ones(3)}, "other": None}},
        {"callbacks": {"EMA": {"ema_weights": []}}},
        {"callbacks": [1]},
        {"ema_state_dict": {"steps": torch.tensor(1), nn.Module: 1, 3: 2}},
        {"state_dict_ema": None, "model_ema": "hrnet", "ema": {"decay": 0.9}},
        {"current_model_state": {}, "averaging_state": 1},
        {"model": argparse.Namespace(state_dict=1), "net": [], torch.ones(2): 1, (1, "a"): 2},
    ],
)
def test_names_of_averages_that_hold_none(beside: dict[Any, Any], tmp_path: Path) -> None:
    state = state_of("pose")
    torch.save({"state_dict": state} | beside, tmp_path / "net.pth")
    assert_equal_states(hf.load_checkpoint(tmp_path / "net.pth").state_dict(), state)


def test_weights_is_one_of_three() -> None:
    for call in (hf.load_checkpoint, lambda s, weights: hf.convert_checkpoint(s, "pose", weights=weights)):
        with pytest.raises(hf.CheckpointError, match="weights='best' is not one of auto, raw, ema"):
            call(state_of("pose"), weights="best")


def test_backbones_take_the_weights_asked_for() -> None:
    state = state_of("pose")
    model = tiny("v1")
    hf.load_backbone(model, {"state_dict": state, "state_dict_ema": other(state)}, weights="raw")
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    hf.load_backbone(model, {"state_dict": state, "state_dict_ema": other(state)})
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"] + 1)


def test_other_weights_are_noted() -> None:
    state = state_of("pose")
    renamed = {
        "state_dict": state,
        "state_dict_emb": other(state),
        "best_state_dict": copy.copy(state),
        "optimizer": {},
    }
    assert hf.load_checkpoint(renamed).notes == ("left out other weights that the checkpoint holds: 'state_dict_emb'",)
