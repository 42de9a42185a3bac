"""Three steps of training in the packages' own trainers: OpenMMLab's Runner, Lightning's Trainer, Accelerate's loop."""

from __future__ import annotations

import importlib
import logging
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from upstream_networks import Batch, quietly

STEPS = 3
RATE = 0.01


class _Batches(Dataset[Batch]):
    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._batches[index]


def _loader(batches: list[Batch]) -> DataLoader[Batch]:
    return DataLoader(_Batches(batches), batch_size=1, shuffle=False, collate_fn=operator.itemgetter(0))


def by_runner(model: nn.Module, batches: list[Batch], folder: Path) -> list[float]:
    """OpenMMLab's; leaves ``iter_3.pth`` in `folder`."""
    runner = importlib.import_module("mmengine.runner")
    hooks = importlib.import_module("mmengine.hooks")
    losses: list[float] = []
    model._is_init = True  # with mmengine's own initialisation the loss hardly depends on the backbone

    class Losses(hooks.Hook):  # type: ignore[misc,name-defined]
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            losses.append(float(outputs["loss"]))

    with quietly():
        runner.Runner(
            model=model,
            work_dir=str(folder),
            train_dataloader=_loader(batches),
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": len(batches)},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": RATE, "momentum": 0.9}},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": len(batches)}},
            custom_hooks=[Losses()],
            default_scope=None,
            experiment_name=f"{folder.name}_{id(model)}",  # of a process, each has its own
            log_level="ERROR",
        ).train()
    return losses


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def by_lightning(model: nn.Module, batches: list[Batch], folder: Path) -> list[float]:
    """Lightning's; leaves ``last.ckpt`` in `folder`."""
    lightning = importlib.import_module("lightning")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    losses: list[float] = []

    class Task(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Batch, _index: int) -> Tensor:
            loss = _loss(self.net(batch["inputs"]), batch["data_samples"])
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), RATE, momentum=0.9)

    with quietly():
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=len(batches), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, precision="64-true", default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Task(), _loader(batches))
        trainer.save_checkpoint(folder / "last.ckpt")
    return losses


def by_accelerate(model: nn.Module, batches: list[Batch], folder: Path) -> list[float]:
    """Hugging Face Accelerate's loop; leaves ``model.safetensors`` in `folder`."""
    accelerate = importlib.import_module("accelerate")
    with quietly():
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        net, optimizer, loader = accelerator.prepare(model, optimizer, _loader(batches))
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = _loss(net(batch["inputs"]), batch["data_samples"])
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        accelerator.save_model(net, str(folder))
    return losses


TRAINERS: dict[str, tuple[Callable[[nn.Module, list[Batch], Path], list[float]], str, str]] = {
    "mmpose": (by_runner, "mmengine", "iter_3.pth"),
    "mmseg": (by_runner, "mmengine", "iter_3.pth"),
    "mmdet": (by_runner, "mmengine", "iter_3.pth"),
    "timm": (by_lightning, "lightning", "last.ckpt"),
    "segmentation_models_pytorch": (by_accelerate, "accelerate", "model.safetensors"),
}
