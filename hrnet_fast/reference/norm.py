"""Normalisation layers, made from a :class:`~hrnet_fast.config.NormConfig`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrnet_fast.config import NormConfig
from hrnet_fast.errors import ConfigError

NormFactory = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose scale, shift and statistics are buffers, with the keys of ``nn.BatchNorm2d``.

    Input and output are [N, C, H, W] of any floating dtype; never trains and never updates.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        # Kept so that a checkpoint loads and saves key for key, whether its norms are frozen or not.
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def norm_factory(config: NormConfig) -> NormFactory:
    """Return ``channels -> module`` for `config`.

    The factory raises :class:`ConfigError` where group normalisation cannot divide a width.
    """

    def make(channels: int) -> nn.Module:
        if config.kind == "frozen":
            return FrozenBatchNorm2d(channels, config.eps)
        if config.kind == "gn":
            if channels % config.groups:
                raise ConfigError(
                    f"NormConfig: {channels} channels cannot be divided into {config.groups} groups; take "
                    f"norm_groups that divides every width, or kind='bn'."
                )
            return nn.GroupNorm(config.groups, channels, eps=config.eps)
        kind = nn.SyncBatchNorm if config.kind == "syncbn" else nn.BatchNorm2d
        return kind(channels, eps=config.eps, momentum=config.momentum)

    return make


@contextlib.contextmanager
def without_stat_updates(module: nn.Module) -> Iterator[None]:
    """Run training-mode batch normalisation inside `module` without touching its running statistics.

    A checkpointed unit runs its forward twice; the second run must not count its batch again. It updates copies
    instead: switching the statistics off would save other tensors for backward than the first run did.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({k: v.clone() for k, v in norm._buffers.items() if v is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
