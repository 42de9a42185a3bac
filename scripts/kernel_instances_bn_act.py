"""The instances of ``bn_act``'s Triton kernels that ``kernels_report.py`` compiles ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hrnet_fast.kernels.triton import bn_act, bn_act_kernels

Instance = tuple[Any, str, dict[str, Any], dict[str, Any]]
SIZES = dict.fromkeys(("channels", "pixels"), "i32")
LOOP = {**SIZES, "total": "i32", "per_program": "i32"}


def bn_act_instances() -> Iterator[Instance]:
    """Every kernel as a residual unit of 48 channels calls it, and the affine of three stacked norms."""
    for dtype in ("fp32", "bf16"):
        for last in (True, False):
            layout = f"{dtype}, {'channels-last' if last else 'contiguous'}"
            yield from _passes(dtype, layout, bn_act.tile(48, 96 * 72, last))
    rows = {"partials": "*fp32", "result": "*fp32", "rows": "i32", "channels": "i32"}
    yield bn_act_kernels.bn_moments_kernel, "fp32", rows, dict(bn_act.COMBINE)
    lists = dict.fromkeys(("weights", "biases", "means", "variances"), ("*fp32",) * 3)
    numbers = {"momenta": ("fp32",) * 3, "epsilons": ("fp32",) * 3}
    signature = {**rows, "unbiased": "fp32", "starts": ("i32",) * 3, "sizes": ("i32",) * 3, **lists, **numbers}
    everything = dict.fromkeys(("WEIGHT", "BIAS", "MEAN", "VARIANCE"), 0b111)
    for batch in (True, False):
        constants = {"NORMS": 3, **everything, "BATCH": batch, **bn_act.COMBINE}
        label = f"fp32, three norms, {'batch' if batch else 'running'} statistics"
        yield bn_act_kernels.bn_affine_kernel, label, signature, constants


def _passes(dtype: str, layout: str, tile: dict[str, Any]) -> Iterator[Instance]:
    """What reads or writes whole maps."""
    data = f"*{dtype}"
    signature: dict[str, Any] = {"x_in": data, "partials": "*fp32", **LOOP}
    yield bn_act_kernels.bn_statistics_kernel, layout, signature, tile
    for residual in (True, False):
        signature = {
            "x_in": data, "affine_in": "*fp32", "residual": data, "residual_affine": "*fp32", "out": data, **SIZES,
        }  # fmt: skip
        label = f"{layout}, {'with' if residual else 'without'} residual"
        constants = {"RESIDUAL": residual, "RESIDUAL_AFFINE": residual, "RELU": True, **tile}
        yield bn_act_kernels.bn_act_kernel, label, signature, constants
        signature = {
            "grad": data, "addend": data, "x_in": data, "affine_in": "*fp32", "out": data, "kept": data,
            "partials": "*fp32", **LOOP,
        }  # fmt: skip
        constants = {"ADDEND": residual, "OUT": residual, "RELU": True, "KEEP": residual, **tile}
        yield bn_act_kernels.bn_backward_sums_kernel, label, signature, constants
    signature = {
        "grad": data, "x_in": data, "affine_in": "*fp32", "sums": "*fp32", "grad_x": data, "share": "fp32", **SIZES,
    }  # fmt: skip
    for batch in (True, False):
        label = f"{layout}, {'batch' if batch else 'given'} statistics"
        yield bn_act_kernels.bn_backward_input_kernel, label, signature, {"BATCH": batch, "RELU": True, **tile}
