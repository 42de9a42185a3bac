"""Plans of real networks, and which bytes of the arena their steps touch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import image as golden_image
from golden_data import load_case
from tiny_networks import image, tiny
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.inference.execution.arena import ArenaMaps
from hrnet_fast.inference.execution.launch_groups import LaunchGroup
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.steps import View


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@functools.cache
def tiny_case(
    head: str, dtype: torch.dtype, batch: int = 1, height: int = 64, width: int = 96
) -> tuple[Plan, Any, Tensor]:
    """Return plan, tensors and input of a small network."""
    model = tiny(head)
    x = image(height, width, batch).to(torch.promote_types(dtype, torch.float32))
    return make_plan(model, tuple(x.shape), dtype), tensors_of(model), x


def golden_case(name: str, dtype: torch.dtype) -> tuple[Plan, Any, Tensor]:
    case = load_case(name)
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("normal_", "uniform_"):  # initial weights: loading is strict, and writes over all of them
            patch.setattr(Tensor, draw, lambda self, *args, **kwargs: self)
        model = hf.load_checkpoint(case.state(), impl="reference").eval()
    x = golden_image(case.input_shape).to(torch.promote_types(dtype, torch.float32))
    return make_plan(model, tuple(x.shape), dtype), tensors_of(model), x


def touched(plan: Plan, maps: ArenaMaps, group: LaunchGroup) -> tuple[int, int]:
    """Return the elements that a launch group reads and writes, as bits: of the arena, of adopted buffers, and slots.

    The bits come from the views themselves, strides included.
    """
    read = written = 0
    for view in group.reads:
        read |= _bits(plan, maps, view)
    for view in group.writes:
        written |= _bits(plan, maps, view)
    end = _slots(plan, maps)
    for slot in group.slot_reads:
        read |= 1 << (end + slot)
    for slot in group.slot_writes:
        written |= 1 << (end + slot)
    return read, written


def _slots(plan: Plan, maps: ArenaMaps) -> int:
    return maps.layout.bytes // plan.dtype.itemsize + len(plan.buffers) * 4096


def _bits(plan: Plan, maps: ArenaMaps, view: View) -> int:
    size = plan.dtype.itemsize
    if maps.adopts(view):  # channels of a tensor of its own
        at = maps.layout.bytes // size + view.buffer * 4096 + view.offset
        return ((1 << view.channels) - 1) << at
    t = maps[view]
    start = (t.data_ptr() - maps.arena.data_ptr()) // size
    inside = torch.zeros(maps.layout.bytes // size, dtype=torch.uint8)
    inside.as_strided(t.shape, t.stride(), start).fill_(1)
    assert int(inside.sum()) == t.numel()
    return int.from_bytes(np.packbits(inside.numpy(), bitorder="little").tobytes(), "little")
