"""RGB weights adapted to other numbers of input channels, compared with timm's own function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_states import state_of
from tiny_networks import image, relative_l2, tiny

import hrnet_fast as hf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 13])
def test_first_convolution_is_timms(channels: int, dtype: torch.dtype) -> None:
    theirs: Any = pytest.importorskip("timm.models").adapt_input_conv
    state = state_of("timm") | {"conv1.weight": torch.randn(8, 3, 3, 3).to(dtype)}
    before = state["conv1.weight"].clone()
    checkpoint = hf.checkpoints.parse_checkpoint(state, in_channels=channels)
    found = checkpoint.state["conv1.weight"]
    assert found.dtype == dtype
    assert torch.equal(found, theirs(channels, before.clone()))
    assert torch.equal(state["conv1.weight"], before), "the caller's mapping stays"
    assert checkpoint.config.in_channels == channels
    assert len(checkpoint.notes) == (channels != 3)


def test_a_grey_network_answers_as_the_rgb_one_on_grey() -> None:
    state = state_of("pose")
    rgb, grey = hf.load_checkpoint(state), hf.load_checkpoint(state, in_channels=1)
    x = image(64, 64, channels=1)
    with torch.no_grad():
        assert relative_l2(grey(x), rgb(x.expand(-1, 3, -1, -1))) < 1e-5
    (note,) = grey.notes
    assert note == "conv1.weight adapted from 3 to 1 input channels, as timm does: summed over R, G and B"


def test_nothing_is_adapted_unasked() -> None:
    state = tiny("v1", in_channels=4).state_dict()
    model = hf.load_checkpoint(state)
    assert model.config.in_channels == 4
    assert model.notes == ()
    for channels in (1, 3):
        with pytest.raises(hf.CheckpointError, match="takes 4 channels, and only RGB weights"):
            hf.load_checkpoint(state, in_channels=channels)
    with pytest.raises(hf.ConfigError, match="in_channels=0"):
        hf.load_checkpoint(state, in_channels=0)


def test_a_backbone_of_other_channels_is_filled_on_request() -> None:
    state = state_of("cls")
    model = tiny("v2", 5, in_channels=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(hf.CheckpointError, match="give in_channels=1 to have the weights adapted"):
        hf.load_backbone(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    hf.load_backbone(model, state, in_channels=1)
    assert torch.equal(model.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))
