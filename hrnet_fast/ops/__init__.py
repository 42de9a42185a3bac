"""The fused operators. One file each: public function, argument checks, ``torch.library`` registration, autograd."""

from hrnet_fast.ops.bn_act import bn_act
from hrnet_fast.ops.fuse_sum import fuse_sum
from hrnet_fast.ops.grouped_conv3x3 import grouped_conv3x3
from hrnet_fast.ops.packed_conv3x3 import PackedConv3x3, pack_grouped_conv3x3
from hrnet_fast.ops.strided_conv_chain import strided_conv_chain
from hrnet_fast.ops.upsample_conv1x1_sum import upsample_conv1x1_sum

__all__ = [
    "PackedConv3x3",
    "bn_act",
    "fuse_sum",
    "grouped_conv3x3",
    "pack_grouped_conv3x3",
    "strided_conv_chain",
    "upsample_conv1x1_sum",
]
