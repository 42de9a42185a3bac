"""The instances of ``grouped_conv3x3``'s Triton kernel that ``kernels_report.py`` compiles ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hrnet_fast.kernels.packing import PAD
from hrnet_fast.kernels.triton import grouped_conv3x3

# The arguments of kernel_instances.Instance, which imports this file.
Instance = tuple[Any, str, dict[str, Any], dict[str, Any], tuple[str, ...], int, bool]
POINTERS = ("outs", "xs", "residuals", "weight", "bias")


def grouped_conv3x3_instances() -> Iterator[Instance]:
    """The last stage of W48, W32, W40 and W18, its second stage, more branches than HRNet has, and both layouts."""
    for dtype in ("fp16", "bf16"):
        yield _grouped(dtype, "W48", _stage(48))
        yield _grouped(dtype, "W32", _stage(32))
    for precision in ("tf32", "ieee"):
        yield _grouped("fp32", f"W48, {precision}", _stage(48), precision=precision)
        yield _grouped("fp32", f"W18, {precision}", _stage(18), precision=precision)
    yield _grouped("bf16", "W40", _stage(40))
    yield _grouped("bf16", "W18", _stage(18))
    yield _grouped("bf16", "W48, no residual", _stage(48), added=0)
    yield _grouped("bf16", "W48, second stage", _stage(48)[:2])
    yield _grouped("bf16", "one branch", [256])
    yield _grouped("bf16", "8 branches", [64] * 8)
    for dtype in ("fp32", "bf16"):
        yield _grouped(dtype, "W48", _stage(48), last=False)
        yield _grouped(dtype, "W48, 64-bit offsets", _stage(48), wide=True)


def _stage(width: int) -> list[int]:
    return [width << k for k in range(4)]


def _grouped(
    dtype: str, detail: str, channels: Sequence[int], *, precision: str = "ieee", last: bool = True,
    wide: bool = False, added: int | None = None,
) -> Instance:  # fmt: skip
    module, n = grouped_conv3x3, len(channels)
    run = min(16, channels[0] & -channels[0]) if last else 1
    tensor_cores = dtype != "fp32" or precision == "tf32"
    itemsize = 4 if dtype == "fp32" else 2
    # Tiles as where pixels fill a device; where they do not, they are those of W32.
    narrow = run * itemsize > 4 and not wide
    p, c, i, warps = module.tile(channels, channels, [1] * n, 1, itemsize, tensor_cores, narrow)
    lists = dict.fromkeys(("outs", "xs", "residuals"), (f"*{dtype}",) * n)
    signature = {**lists, "weight": f"*{dtype}", "bias": "*fp32", **dict.fromkeys(module.NUMBERS, ("i32",) * n)}
    signature |= {"images": "i32", "tiles": "i32"}
    if wide:
        signature |= dict.fromkeys(("strides_n", "residuals_n"), ("i64",) * n)
    constants = {
        "BRANCHES": n, "ADDED": 2**n - 1 if added is None else added, "RELU": True, "LAST": last, "UNIT": run,
        "WIDE": wide, "WIDEN": False, "PRECISION": precision, "PADDING": PAD, "BLOCK_P": p, "BLOCK_C": c, "BLOCK_I": i,
    }  # fmt: skip
    label = ", ".join((dtype, "channels-last" if last else "contiguous", detail))
    return module.grouped_conv3x3_kernel, label, signature, constants, POINTERS, warps, tensor_cores
