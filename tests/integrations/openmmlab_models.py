"""OpenMMLab's packages ready to import, a tiny HRNet of each, and a runner that trains one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from tiny_networks import enliven, image
from torch import Tensor
from upstreams import mmcv_ext

mmcv_ext.install()  # mmengine alone needs none of it


def extra() -> dict[str, Any]:
    """The smallest stages that the packages' HRNets accept."""

    def stage(branches: int, block: str, channels: tuple[int, ...]) -> dict[str, Any]:
        blocks = (1,) * branches
        return {
            "num_modules": 1, "num_branches": branches, "block": block, "num_blocks": blocks, "num_channels": channels,
        }  # fmt: skip

    stages = {"stage1": stage(1, "BOTTLENECK", (4,))}
    stages |= {f"stage{k}": stage(k, "BASIC", (4, 8, 12, 16)[:k]) for k in (2, 3, 4)}
    return stages


def build(package: str, **config: Any) -> Any:
    """Build a backbone as a configuration of `package` does."""
    models = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package):
        return models.build({"extra": extra(), **config})


class Detector(BaseModel):  # type: ignore[misc]
    """A model of mmengine's around a backbone; its loss weighs every pixel of every map differently."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = enliven(backbone)

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        maps = self.backbone(x)
        if mode != "loss":
            return list(maps)
        return {"loss": sum((torch.linspace(-1, 2, m.numel(), dtype=m.dtype).view_as(m) * m).mean() for m in maps)}


class Images(torch.utils.data.Dataset[list[Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        return [image(64, 64, dtype=torch.float64)[0] * (index + 1)]


def runner(model: Any, work_dir: Path, **changes: Any) -> Runner:
    """A runner of mmengine's for two steps of training; the model computes in float64."""
    return Runner(
        model.double(),
        work_dir=str(work_dir),
        train_dataloader={
            "dataset": Images(), "batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        randomness={"seed": 0},
        experiment_name=f"{work_dir.parent.name}-{work_dir.name}",
        **changes,
    )  # fmt: skip


def configuration(package: str, path: str) -> Any:
    """One of the configurations that `package` brings with it."""
    root = Path(importlib.import_module(package).__file__ or "").parent
    return mmengine.Config.fromfile(str(root / ".mim" / "configs" / path))
