"""The fused operators, usable alone. One file each: public function, checks, ``torch.library`` contract, autograd."""

from hrnet_fast.ops.bn_act import bn_act
from hrnet_fast.ops.fuse_sum import fuse_sum

__all__ = ["bn_act", "fuse_sum"]
