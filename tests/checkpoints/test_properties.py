"""Property tests over random small networks and random damage of their checkpoints."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from family_states import state_of
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tiny_networks import enliven, image, maps, tiny
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.checkpoints.comparison import expected_shapes
from hrnet_fast.checkpoints.infer import infer_config
from hrnet_fast.config import READ_BY

# Repeatable: a failure here is one that every machine sees.
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],
}
HEADS = ("features", "v1", "v1h", "v2", "v2p", "ocr", "face", "ci")
# What a state_dict does not tell, by the names that overrides have.
UNTOLD = ("upsample", "align_corners", "upsample_to", "fusion")
UNTOLD_HEAD = ("upsample_logits", "out_indices", "ocr_outputs")


@st.composite
def stages(draw: st.DrawFn) -> tuple[hf.StageConfig, ...]:
    """A first stage and one to three more, of two-divisible widths (for group normalisation)."""
    blocks = st.sampled_from(["basic", "bottleneck"])
    made = [hf.StageConfig((draw(st.sampled_from([2, 4])),), (draw(st.integers(1, 2)),), 1, draw(blocks))]
    branches = 1
    for _ in range(draw(st.integers(1, 3))):
        branches = draw(st.integers(branches, min(branches + 2, 4)))
        channels = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=branches, max_size=branches))
        depths = draw(st.lists(st.integers(1, 2), min_size=branches, max_size=branches))
        made.append(hf.StageConfig(tuple(channels), tuple(depths), draw(st.integers(1, 2)), draw(blocks)))
    return tuple(made)


@st.composite
def heads(draw: st.DrawFn, branches: int, multiscale: bool) -> hf.HeadConfig:
    kinds = HEADS if multiscale else ("features", "v1", "v1h")
    kind = draw(st.sampled_from(kinds))
    # Without outputs, v1 and ci leave nothing in a state_dict that would tell them from bare features.
    fewest = {"features": 0, "v2p": 0, "v1h": 0, "v2": 0}.get(kind, 1)
    outputs = 0 if kind in ("features", "v2p") else draw(st.integers(fewest, 3))
    options: dict[str, Any] = {}
    if outputs and kind in ("v1", "v1h", "v2", "face"):
        options["kernel_size"] = draw(st.sampled_from([1, 3]))
    if kind in ("v1h", "v2", "ocr", "face"):
        options["conv_bias"] = draw(st.booleans())
    if kind in ("v2", "ocr", "face"):
        options |= {"mixing_kernel": draw(st.sampled_from([1, 3])), "mixing_channels": draw(st.sampled_from([0, 1]))}
    if kind in ("v2", "face") and outputs:
        options["output_bias"] = draw(st.booleans())
    if kind == "features" and draw(st.booleans()):
        count = branches if multiscale else 1
        indices = st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)
        options["out_indices"] = tuple(draw(indices))
    if kind == "v2p":
        options |= {"num_levels": draw(st.integers(1, 5)), "channels": 4}
    if kind == "ocr":
        options |= {"channels": 4, "key_channels": 2, "attention_bias": draw(st.booleans())}
        options["ocr_outputs"] = draw(st.sampled_from(["both", "tuple", "main"]))
    return hf.HeadConfig(kind, outputs, upsample_logits=draw(st.booleans()), **options)


@st.composite
def configs(draw: st.DrawFn) -> hf.HRNetConfig:
    chosen = draw(stages())
    multiscale = draw(st.booleans())
    upsample = draw(st.sampled_from(["nearest", "bilinear"]))
    to = ["scale", "target"] + ["scale_then_target"] * (upsample == "bilinear")
    return hf.HRNetConfig(
        chosen,
        draw(heads(chosen[-1].num_branches, multiscale)),
        in_channels=draw(st.integers(1, 4)),
        stem_channels=draw(st.sampled_from([2, 4])),
        upsample=upsample,
        upsample_to=draw(st.sampled_from(to)),
        align_corners=draw(st.booleans()),
        fusion=draw(st.sampled_from(["sum", "product"])),
        fusion_units=draw(st.sampled_from(["final", "across", "within"])),
        downsample=draw(st.sampled_from(["strided", "bilinear"])),
        multiscale_output=multiscale,
        norm=hf.NormConfig(draw(st.sampled_from(["bn", "gn", "frozen"])), eps=1e-3, groups=2),
    )


@pytest.mark.no_cover
@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(config=configs())
def test_plain_data_round_trip(config: hf.HRNetConfig) -> None:
    assert hf.HRNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.no_cover
@pytest.mark.slow
@settings(max_examples=50, **SETTINGS)
@given(config=configs())
def test_inference_recovers_the_structure(config: hf.HRNetConfig) -> None:
    shapes = expected_shapes(config)
    found = infer_config(shapes, norm_groups=2)
    assert found.stages == config.stages
    assert (found.in_channels, found.stem_channels) == (config.in_channels, config.stem_channels)
    assert (found.norm.kind == "gn") == (config.norm.kind == "gn")
    told = ("kind", "num_outputs", "kernel_size", "num_levels", "feature_location")
    assert [getattr(found.head, name) for name in told] == [getattr(config.head, name) for name in told]
    assert expected_shapes(found) == shapes


@pytest.mark.slow
@settings(max_examples=40, **SETTINGS)
@given(config=configs(), odd=st.booleans())
def test_loading_gives_the_network_that_was_saved(config: hf.HRNetConfig, odd: bool) -> None:
    # A product of several terms would leave the range of numbers within a few modules.
    assume(config.fusion == "sum" or max(stage.num_modules for stage in config.stages) == 1)
    model = enliven(hf.HRNet(config)).eval()
    overrides: dict[str, Any] = {name: getattr(config, name) for name in UNTOLD}
    if not config.bilinear:
        del overrides["align_corners"]
    heads = [name for name in UNTOLD_HEAD if config.head.kind in READ_BY[name]]
    overrides |= {name: getattr(config.head, name) for name in heads}
    overrides |= {"norm_kind": config.norm.kind, "norm_eps": config.norm.eps, "norm_groups": config.norm.groups}
    loaded = hf.load_checkpoint(model.state_dict(), **overrides)
    size = (65, 97) if odd and config.upsample_to != "scale" else (64, 96)
    x = image(*size, channels=config.in_channels)
    with torch.no_grad():
        actual, expected = loaded(x), model(x)
    assert type(actual) is type(expected)
    for a, e in zip(maps(actual), maps(expected), strict=True):
        assert torch.isfinite(e).all()
        assert torch.equal(a, e)


def test_stages_of_one_branch_between() -> None:
    """They never fuse, whatever the modules around them do."""
    config = hf.HRNetConfig(
        (
            hf.StageConfig((4,), (1,), 1, "bottleneck"),
            hf.StageConfig((4,), (1,)),
            hf.StageConfig((4, 8), (1, 1), num_modules=2),
        ),
        hf.HeadConfig("v2", 3),
    )
    shapes = expected_shapes(config)
    assert expected_shapes(infer_config(shapes)) == shapes


def test_group_normalisation_needs_its_groups() -> None:
    state = tiny("v1", norm_kind="gn", norm_groups=2).state_dict()
    assert hf.load_checkpoint(state, norm_groups=2).config.norm == hf.NormConfig("gn", groups=2)
    with pytest.raises(hf.HRNetFastError, match="norm_groups"):
        hf.load_checkpoint(state)


@functools.cache
def sound(family: str) -> dict[str, Tensor]:
    """A family's state_dict without memory of its own: only names and shapes matter to what is refused."""
    head = "ci" if family == "cls" else None
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state_of(family, head).items()}


FAMILIES = ("pose", "seg", "seg_ocr", "cls", "face", "backbone", "timm_features", "mmpose", "mmseg", "mmdet", "det")
# Whole parts that make a smaller network, itself complete, when they are gone.
OPTIONAL = ("final_layer.", "last_layer.3.", "classifier.", "last_layer.0.bias", "head.0.bias", "head.final_layer.")


@st.composite
def reshaped(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    ways = ["grow", "rank", "empty", "scalar"]
    way = draw(st.sampled_from(ways + ["reverse", "flat", "shrink"] * bool(shape)))
    at = draw(st.integers(0, len(shape) - 1)) if shape else 0
    changed = {
        "grow": (*shape[:at], shape[at] + 1, *shape[at + 1 :]) if shape else (2,),
        "rank": (*shape, 1),
        "empty": (0, *shape[1:]),
        "scalar": (),
        "reverse": shape[::-1],
        "flat": (int(torch.Size(shape).numel()),),
        "shrink": (*shape[:at], shape[at] // 2, *shape[at + 1 :]) if shape else (),
    }
    return changed[way]


@st.composite
def renamed(draw: st.DrawFn, key: str) -> str:
    parts = key.split(".")
    at = draw(st.integers(0, len(parts) - 1))
    other = draw(st.sampled_from(["0", "1", "9", "x", "conv1", "weight", ""]))
    names = [key + "x", "x." + key, ".".join(parts[1:]), ".".join([*parts[:at], other, *parts[at + 1 :]])]
    return draw(st.sampled_from(names))


@pytest.mark.slow
@settings(max_examples=150, **SETTINGS)
@given(data=st.data(), family=st.sampled_from(FAMILIES), damage=st.sampled_from(["delete", "reshape", "rename", "add"]))
def test_damage_is_refused(data: st.DataObject, family: str, damage: str) -> None:
    state = dict(sound(family))
    pick = st.sampled_from(sorted(state))
    if damage == "add":
        name = data.draw(st.text(st.characters(codec="utf-8"), max_size=12) | pick.flatmap(renamed), "added")
        state.setdefault(name, torch.zeros(data.draw(st.sampled_from([(), (1,), (4, 4, 1, 1)]))))
    for key in data.draw(st.lists(pick, min_size=1, max_size=3, unique=True), "keys") if damage != "add" else ():
        assume(not key.startswith(OPTIONAL))
        value = state.pop(key)
        if damage == "reshape":
            state[key] = torch.zeros((), dtype=value.dtype).expand(data.draw(reshaped(tuple(value.shape))))
        elif damage == "rename":
            state[data.draw(renamed(key))] = value
    if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in sound(family).items()}:
        assert hf.load_checkpoint(state).notes == ()
    else:
        with pytest.raises(hf.CheckpointError):
            hf.load_checkpoint(state)
