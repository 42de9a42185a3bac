"""Each operator on CUDA, its host side: launches go to the tensors' device, whichever is current."""

from __future__ import annotations

from collections.abc import Callable

import device_counters
import pytest
import torch
from torch import Tensor

from hrnet_fast import ops
from hrnet_fast.implementations import OPERATORS

pytestmark = pytest.mark.nulldevice
DEVICE = "cuda:1"


def on(*shape: int) -> Tensor:
    return torch.zeros(shape, device=DEVICE)


CALLS: dict[str, Callable[[str], Tensor | list[Tensor]]] = {
    "bn_act, training": lambda impl: ops.bn_act(on(2, 8, 8, 8), on(8), on(8), on(8), on(8), impl=impl),
    "bn_act, evaluation": lambda impl: ops.bn_act(
        on(2, 8, 8, 8), on(8), on(8), on(8), on(8), training=False, impl=impl
    ),
    "fuse_sum": lambda impl: ops.fuse_sum([on(1, 8, 8, 8), on(1, 8, 4, 4)], impl=impl),
    "grouped_conv3x3": lambda impl: ops.grouped_conv3x3(
        [on(1, 16, 8, 8), on(1, 32, 4, 4)], [on(16, 16, 3, 3), on(32, 32, 3, 3)], impl=impl
    ),
    "strided_conv_chain": lambda impl: ops.strided_conv_chain([on(1, 16, 16, 16)], on(32, 16, 3, 3), impl=impl),
    "upsample_conv1x1_sum": lambda impl: ops.upsample_conv1x1_sum(
        [on(1, 16, 8, 8), on(1, 32, 4, 4)], [None, on(16, 32, 1, 1)], impl=impl
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "impl"),
    [(what, i) for what in CALLS for i in ("triton", "cuda") if what.partition(",")[0] in OPERATORS[i]],
)
def test_launches_go_to_the_tensors_device(what: str, impl: str) -> None:
    call = CALLS[what]
    call(impl)
    with device_counters.counting() as n:
        call(impl)
    assert n.launches == n.launches_beyond_device_0 > 0
    assert (n.errors, n.synchronizations, torch.cuda.current_device()) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_backward_launches_for_what_is_wanted(impl: str) -> None:
    """On the tensors' device, and nothing for a term that needs no gradient."""
    x, c = on(2, 8, 8, 8).requires_grad_(), on(8).requires_grad_()
    calls: dict[int, Callable[[], Tensor]] = {
        2 if impl == "cuda" else 3: lambda: ops.bn_act(x, c, c, on(8), on(8), impl=impl),
        1: lambda: ops.fuse_sum([x, on(2, 8, 4, 4)], impl=impl),
    }
    for launches, call in calls.items():
        torch.autograd.grad(call(), x, on(2, 8, 8, 8))
        out, grad = call(), on(2, 8, 8, 8)
        with device_counters.counting() as n:
            torch.autograd.grad(out, x, grad)
        assert n.launches == n.launches_beyond_device_0 == launches
        assert (n.errors, n.synchronizations) == (0, 0)
