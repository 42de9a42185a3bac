"""What engines refuse: inputs, examples and models that do not fit, each in one line that says what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_engine_threads import DTYPES
from tiny_networks import image, tiny
from torch import nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError

NORMAL = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
BAD: dict[str, tuple[Any, str]] = {
    "rank": (image()[0], "batch dimension"),
    "integers": (image().long(), "int64"),
    "bytes": (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
    "device": (image().to("meta"), "meta"),
    "array": (np.zeros((1, 3, 64, 64)), "ndarray"),
    "nothing": (None, "NoneType"),
    "channels": (image(channels=4), r"\(1, 4, 64, 64\)"),
    "size": (image(40, 40), "40x40"),
    "no pixels": (image(64, 64)[:, :, :0], r"\(1, 3, 0, 64\)"),
}  # fmt: skip


@DTYPES
def test_inputs_that_do_not_fit(dtype: torch.dtype) -> None:
    engine = hf.optimize_for_inference(tiny("v1"), image(64, 64), dtype=dtype)
    before = engine(image(64, 64))
    for name, (x, says) in BAD.items():
        with pytest.raises(InputError, match=says) as raised:
            engine(x)
        assert "\n" not in str(raised.value), name
        with pytest.raises(InputError):
            engine.profile(x)
    assert list(engine._executors) == [(1, 3, 64, 64)]
    assert torch.equal(engine(image(64, 64)), before)


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (image(), {"dtype": torch.int8}, "int8"),
        (image(), {"max_shapes": 0}, "max_shapes"),
        (image()[0], {}, "batch"),
        (image().to("meta"), {}, "without data"),
        (np.zeros((1, 3, 64, 64)), {}, "ndarray"),
        (image(), {"normalize": NORMAL}, "bytes"),
        (torch.zeros(1, 64, 64, 4, dtype=torch.uint8), {"normalize": NORMAL}, "last dimension"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), {}, "floating"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), {"normalize": ((0.5,), (0.1, 0.2))}, "one mean"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), {"normalize": ((0.5,), (0.0,))}, "positive"),
        (image(channels=4), {}, r"\(1, 4, 64, 64\)|\(1, 4, 64, 96\)"),
    ],
)
def test_examples_that_do_not_fit(x: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        hf.optimize_for_inference(tiny(), x, **options)


def test_models_that_fail_are_told_of() -> None:
    """A model that checks nothing raises its convolution's error: it comes as one line, with what was given."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    with pytest.raises(InputError, match=r"Sequential takes no input \[1, 5, 64, 64\]: .*5 channels") as raised:
        hf.optimize_for_inference(model, image(64, 64, channels=5))
    assert "\n" not in str(raised.value)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="eval"):
        hf.optimize_for_inference(tiny().train(), image())
    hooked = tiny()
    hooked.get_submodule("layer1").register_forward_hook(lambda *a: None)
    with pytest.raises(InputError, match="hook"):
        hf.optimize_for_inference(hooked, image())
