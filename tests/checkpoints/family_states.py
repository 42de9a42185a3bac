"""State dicts of every family for tiny networks, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tiny_networks import maps, tiny
from torch import Tensor

import hrnet_fast as hf

State = dict[str, Tensor]


def network(family: str, head: str, **options: Any) -> hf.HRNet:
    """A tiny network of the kind that the family's files hold."""
    format = hf.FAMILIES[family]
    told = {"conv_bias": format.head_conv_bias is not False, **format.always}
    told |= {k: v for k, v in format.defaults.items() if k == "upsample_logits"}
    if family == "csail":
        told |= {"upsample": "bilinear", "upsample_to": "target"}
    options = told | options
    if family == "timm_features":
        options["feature_location"] = "incre"
    return tiny(head, **options)


def count_batches(state: Mapping[str, Tensor]) -> State:
    """A trained network's counters are not zero."""
    return {k: v + 7 if k.endswith("num_batches_tracked") else v.clone() for k, v in state.items()}


def state_of(family: str, head: str | None = None, **options: Any) -> State:
    """The family's state_dict of a tiny network."""
    model = network(family, head or hf.FAMILIES[family].heads[0], **options)
    state = hf.FAMILIES[family].from_canonical(count_batches(model.state_dict()))
    if family == "pose_imagenet":
        state |= old_imagenet_head()
    if family == "csail":
        state |= synchronised_buffers(state)
    return state


def synchronised_buffers(state: State) -> State:
    """What the normalisations of CSAIL's code keep beside PyTorch's buffers."""
    means = [k.removesuffix("running_mean") for k in state if k.endswith("running_mean")]
    names = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")
    return {f"{norm}{name}": torch.ones(1) for norm in means for name in names}


def old_imagenet_head() -> State:
    """The classifier of the authors' ImageNet files for pose: names and shapes that no later network has."""
    shapes: dict[str, tuple[int, ...]] = {"classifier.weight": (10, 64), "classifier.bias": (10,)}
    for part, units in (("head.0", 4), ("head.1", 3)):
        for i in range(units):
            for k in (1, 2, 3):
                shapes[f"{part}.{i}.0.conv{k}.weight"] = (8, 8, 1, 1)
                for name in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{part}.{i}.0.bn{k}.{name}"] = (8,)
    return {k: torch.randn(shape) for k, shape in shapes.items()}


def assert_equal_states(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        assert torch.equal(actual[key], value), key


def run(model: Any, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return maps(model(x))
