"""Run by test_bn_act_triton.py under the interpreter: offsets of tiles in maps of far more than 2^31 elements."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hrnet_fast.kernels.triton.bn_act_kernels import _tile

BLOCK = 16


@triton.jit
def offsets_kernel(out, t, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    first, at, inside, _ = _tile(t, channels, pixels, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    i = tl.arange(0, BLOCK_P)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(out + i, tl.where(inside, (first + at).to(tl.int64), -1))


def expected(t: int, channels: int, pixels: int, channels_last: bool) -> torch.Tensor:
    """The same in Python's integers; -1 outside."""
    image, tile = (0, t) if channels_last else divmod(t, -(-pixels // BLOCK))
    rows = []
    for p in range(tile * BLOCK, (tile + 1) * BLOCK):
        at = [p * channels + c if channels_last else (image * channels + c) * pixels + p for c in range(BLOCK)]
        rows.append([a if p < pixels and c < channels else -1 for c, a in enumerate(at)])
    return torch.tensor(rows)


HUGE = 2**31 + 7
for case in ((3_000_000, 70, 96_000_032, True), (5, 3, HUGE, False), (2 * -(-HUGE // BLOCK) + 5, 3, HUGE, False),
             (80_000_013, 50, 37 * BLOCK - 3, False), (-(-HUGE // BLOCK) - 1, 18, HUGE, True)):  # fmt: skip
    found = torch.zeros(BLOCK, BLOCK, dtype=torch.int64)
    offsets_kernel[(1,)](found, *case, BLOCK, BLOCK)
    assert torch.equal(found, expected(*case)), case
print("parity held")
