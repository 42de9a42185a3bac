"""Operators without checks and autograd, for callers that bring their own (fused training) or need none (engines)."""

from typing import Any

from hrnet_fast.ops.bn_act_primitives import BnActPrimitives, load_bn_act
from hrnet_fast.ops.bn_act_sync import joint_affine, joint_sums, values_per_channel
from hrnet_fast.ops.common import memory_format_of, wrong_in_bfloat16
from hrnet_fast.ops.compiled import load_compiled
from hrnet_fast.ops.fuse_sum import RESAMPLE, fuse_sum_backward, fuse_sum_forward
from hrnet_fast.ops.strided_conv_chain import strided_conv_chain_forward

__all__ = [
    "RESAMPLE",
    "BnActPrimitives",
    "fuse_sum_backward",
    "fuse_sum_forward",
    "joint_affine",
    "joint_sums",
    "load_bn_act",
    "load_compiled",
    "load_kernel_compiler",
    "memory_format_of",
    "strided_conv_chain_forward",
    "values_per_channel",
    "wrong_in_bfloat16",
]


def load_kernel_compiler() -> Any:
    """Return the class whose context compiles Triton kernels in place of launching them."""
    from hrnet_fast.kernels.triton.launch import KernelCompiler

    return KernelCompiler
