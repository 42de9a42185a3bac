"""Operators without checks and autograd, for callers that bring their own (fused training) or need none (engines)."""

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
    "memory_format_of",
    "strided_conv_chain_forward",
    "values_per_channel",
    "wrong_in_bfloat16",
]
