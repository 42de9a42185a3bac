"""The Triton kernel instances that ``kernels_report.py`` compiles: arguments of HRNet's fusions, and edge cases.

Triton specialises a kernel for arguments that equal 1 (constants) or are divisible by 16 (vector loads). An instance
lists these arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kernel_instances_bn_act import bn_act_instances
from kernel_instances_grouped import grouped_conv3x3_instances

from hrnet_fast.kernels.triton import fuse_sum, strided_conv_chain, upsample_conv1x1_sum

MODES = ((0, "nearest"), (1, "bilinear"), (2, "bilinear, corners aligned"))
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass
class Instance:
    """One specialisation of one kernel.

    Attributes:
        signature: Triton type of each argument, a tuple of types for a tuple.
        constants: values of constexpr parameters, and of arguments that are 1, by name or (name, index).
        divisible: arguments that 16 divides (of tuples, every element that is not constant).
        tensor_cores: whether the kernel must use them.
    """

    kernel: Any
    label: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    divisible: tuple[str, ...] = ()
    warps: int = 4
    tensor_cores: bool = field(default=False)


def fuse_sum_instances() -> Iterator[Instance]:
    """Return instances of ``fuse_sum``: forward of a four-branch target, backward of two of its terms."""
    for dtype in ("fp32", "bf16"):
        for last in (True, False):
            for mode in MODES:
                yield from _fuse_sum(dtype, last, mode, 48, {})
    ones: dict[Any, int] = {(name, k): 1 for name in ("heights", "widths") for k in range(4)}
    ones |= dict.fromkeys(("channels", "height", "width"), 1)
    for last in (True, False):
        for mode in MODES:
            yield from _fuse_sum("fp32", last, mode, 1, ones)


def _fuse_sum(dtype: str, last: bool, mode: tuple[int, str], channels: int, ones: dict[Any, int]) -> Iterator[Instance]:
    ints = dict.fromkeys(("channels", "height", "width"), "i32")
    block_p, block_c = fuse_sum.tile(channels, last)
    common = {"MODE": mode[0], "CHANNELS_LAST": last, "BLOCK_P": block_p, "BLOCK_C": block_c, "RELU": True}
    label = f"{dtype}, {_layout(last)}, {mode[1]}" + (", all sizes 1" if ones else "")
    lists = {"xs": (f"*{dtype}",) * 4, "scales": ("*fp32",) * 4, "shifts": ("*fp32",) * 4}
    signature = {"out": f"*{dtype}", **lists, "heights": ("i32",) * 4, "widths": ("i32",) * 4, **ints}
    # Terms of size 1 that differ from their target's meet resampling only where the target is larger.
    targets = [{}] if not ones else [ones, {k: v for k, v in ones.items() if k not in ("height", "width")}]
    for target in targets:
        constants = {"TERMS": 4, "AFFINE": 0b1110, "SAME": 0b0001, **common, **target}
        detail = label + (", larger target" if ones and "height" not in target else "")
        yield Instance(fuse_sum.fuse_sum_kernel, detail, signature, constants)
    for same in (False, True):
        signature = {
            "grad": f"*{dtype}", "out": f"*{dtype}", "x_in": f"*{dtype}", "scale_in": "*fp32",
            "grad_x": f"*{dtype}", "sums": "*fp32", "products": "*fp32", **ints,
            "h": "i32", "w": "i32", "reach_y": "i32", "reach_x": "i32",
        }  # fmt: skip
        constants = {"SAME": same, "AFFINE": True, "WANT_X": True, "WANT_AFFINE": True, **common}
        if ones:
            # An upsampled term of size 1 has a larger target.
            constants |= dict.fromkeys(ints if same else ("channels",), 1) | {"h": 1, "w": 1}
            constants |= {"reach_y": 1, "reach_x": 1} if same else {}
        detail = label + (", identity" if same else ", upsampled")
        yield Instance(fuse_sum.fuse_sum_backward_kernel, detail, signature, constants)


def _layout(last: bool) -> str:
    return "channels-last" if last else "contiguous"


def upsample_conv1x1_sum_instances() -> Iterator[Instance]:
    """An identity and three upsampled terms of W48; W18, whose channels are no vectors; all eight terms; sizes of 1."""
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (True, False):
            yield _upsample(dtype, last, MODES[1])
    yield _upsample("bf16", True, MODES[0])
    yield _upsample("bf16", True, MODES[2])
    for dtype in ("fp32", "bf16"):
        yield _upsample(dtype, True, MODES[1], detail="W18", vectors=False)
        yield _upsample(dtype, True, MODES[1], detail="64-bit offsets", wide=True)
    yield _upsample("bf16", False, MODES[1], terms=8, detail="8 terms")
    sizes = ("in_channels", "heights", "widths", "strides_n", "strides_c", "strides_h", "strides_w")
    for dtype in ("fp32", "bf16"):
        for mode in MODES:
            ones: dict[Any, int] = {(name, k): 1 for name in sizes for k in range(4)}
            yield _upsample(dtype, False, mode, detail="all sizes 1", ones={**ones, "height": 1, "width": 1})


def _upsample(
    dtype: str, last: bool, mode: tuple[int, str], *, terms: int = 4, detail: str = "", vectors: bool = True,
    wide: bool = False, ones: dict[Any, int] | None = None,
) -> Instance:  # fmt: skip
    module = upsample_conv1x1_sum
    p, c, i, warps = module.tile(48, ITEMSIZE[dtype], last and vectors and not wide)
    lists = ("in_channels", "heights", "widths", "strides_n", "strides_c", "strides_h", "strides_w")
    signature = {
        "out": f"*{dtype}", "xs": (f"*{dtype}",) * terms, "weights": (f"*{dtype}",) * terms, "bias": "*fp32",
        **dict.fromkeys(lists, ("i32",) * terms), **dict.fromkeys(("channels", "height", "width"), "i32"),
    }  # fmt: skip
    constants: dict[Any, Any] = {
        "TERMS": terms, "WEIGHTED": 2**terms - 2, "SAME": 0b0001, "MODE": mode[0], "BIAS": True, "RELU": True,
        "CHANNELS_LAST": last, "WIDE": wide, "WIDEN": False, "BLOCK_P": p, "BLOCK_C": c, "BLOCK_I": i,
    }  # fmt: skip
    if wide:
        signature |= dict.fromkeys(("strides_n", "strides_h", "strides_w"), ("i64",) * terms)
    constants |= {("strides_c" if last else "strides_w", k): 1 for k in range(terms)} | (ones or {})
    label = ", ".join(filter(None, (dtype, _layout(last), mode[1], detail)))
    divisible = _divisible(last, vectors, ("out", "xs", "weights", "bias"), ("channels",))
    kernel = module.upsample_conv1x1_sum_kernel
    return Instance(kernel, label, signature, constants, divisible, warps, dtype != "fp32")


def _divisible(last: bool, vectors: bool, pointers: tuple[str, ...], channels: tuple[str, ...]) -> tuple[str, ...]:
    if not vectors:
        return pointers
    return (*pointers, *channels, "in_channels", "strides_n", *(("strides_h", "strides_w") if last else ()))


def strided_conv_chain_instances() -> Iterator[Instance]:
    """The second level of a four-branch fusion of W48: three inputs, an addend; W18; sizes of 1."""
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (True, False):
            yield _strided(dtype, last)
    for dtype in ("fp32", "bf16"):
        yield _strided(dtype, True, detail="W18", vectors=False)
        yield _strided(dtype, True, detail="64-bit offsets", wide=True)
        ones: dict[Any, int] = {
            (name, k): 1
            for name in ("in_channels", "strides_n", "strides_c", "strides_h", "strides_w")
            for k in range(3)
        }
        ones |= dict.fromkeys(("addend_h", "addend_w"), 1)  # of the sizes of maps the kernel is not specialised for 1
        yield _strided(dtype, False, detail="all sizes 1", ones=ones)


def _strided(
    dtype: str, last: bool, *, detail: str = "", vectors: bool = True, wide: bool = False,
    ones: dict[Any, int] | None = None,
) -> Instance:  # fmt: skip
    module = strided_conv_chain
    p, c, i, warps = module.tile(192, ITEMSIZE[dtype], last and vectors and not wide)
    ints = ("all_channels", "height_in", "width_in", "channels", "height", "width", "addend_n", "addend_c", "addend_h",
            "addend_w", "relu_begin", "relu_end")  # fmt: skip
    signature = {
        "out": f"*{dtype}", "xs": (f"*{dtype}",) * 3, "weight": f"*{dtype}", "bias": "*fp32", "addend": f"*{dtype}",
        **dict.fromkeys(("in_channels", "strides_n", "strides_c", "strides_h", "strides_w"), ("i32",) * 3),
        **dict.fromkeys(ints, "i32"),
    }  # fmt: skip
    constants: dict[Any, Any] = {
        "INPUTS": 3, "BIAS": True, "ADDEND": True, "RELU": True, "CHANNELS_LAST": last, "WIDE": wide, "WIDEN": False,
        "BLOCK_P": p, "BLOCK_C": c, "BLOCK_I": i, "addend_c" if last else "addend_w": 1,
    }  # fmt: skip
    if wide:
        signature |= dict.fromkeys(("strides_n", "strides_h", "strides_w"), ("i64",) * 3)
    constants |= {("strides_c" if last else "strides_w", k): 1 for k in range(3)} | (ones or {})
    label = ", ".join(filter(None, (dtype, _layout(last), detail)))
    divisible = _divisible(last, vectors, ("out", "xs", "weight", "bias", "addend"), ("channels", "all_channels"))
    kernel = module.strided_conv_chain_kernel
    return Instance(kernel, label, signature, constants, divisible, warps, dtype != "fp32")


INSTANCES: dict[str, Callable[[], Iterator[Instance]]] = {
    "fuse_sum": fuse_sum_instances,
    "bn_act": lambda: (Instance(*parts) for parts in bn_act_instances()),
    "upsample_conv1x1_sum": upsample_conv1x1_sum_instances,
    "strided_conv_chain": strided_conv_chain_instances,
    "grouped_conv3x3": lambda: (Instance(*parts) for parts in grouped_conv3x3_instances()),
}
