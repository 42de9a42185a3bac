"""The callback in Lightning's own trainers, under both names of the package.

The packages are imported where they are used: of the workers that collect this file, one runs it.
"""

from __future__ import annotations

import copy
import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import image, relative_l2, tiny
from torch import Tensor, nn

import hrnet_fast as hf

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


class Task:
    """The methods of a LightningModule that trains a network."""

    network: nn.Module

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss: Tensor = self.network(batch).square().mean()
        return loss

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def loader() -> Any:
    return torch.utils.data.DataLoader(image(32, 32, batch=4, dtype=torch.float64), batch_size=2)  # type: ignore[arg-type]


def trainer(package: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    return package.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=folder,
        callbacks=list(callbacks), enable_checkpointing=False, enable_model_summary=False, **options,
    )  # fmt: skip


def random_network() -> nn.Module:
    return hf.restore(tiny("v1").double()).train()


@pytest.mark.parametrize(
    ("name", "integration"), [("lightning.pytorch", "lightning"), ("pytorch_lightning", "pytorch_lightning")]
)
def test_the_callback_accelerates(
    name: str, integration: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package: Any = importlib.import_module(name)
    callback = importlib.import_module(f"hrnet_fast.integrations.{integration}").AccelerateHRNet

    class Module(Task, package.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

    network = random_network()
    plain, fast = Module(copy.deepcopy(network)), Module(network)
    trainer(package, tmp_path).fit(plain, loader())
    with caplog.at_level(logging.INFO):
        trainer(package, tmp_path, callback(memory="min", impl="reference")).fit(fast, loader(), loader())
    state = fast.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(relative_l2(state[k], v) < 1e-9 for k, v in plain.state_dict().items())
    told = [r.getMessage() for r in caplog.records if "accelerate: " in r.getMessage()]
    blocks = len(hf.explain(fast).blocks)
    assert told == [f"accelerate: {blocks} of {blocks} blocks take the fused path (impl='reference')"]
    assert fast.network.stage2[0].fused_settings.memory == "min"


def test_a_network_that_is_configured_late_is_accelerated_under_ddp(tmp_path: Path) -> None:
    """Also one that is only evaluated."""
    import lightning.pytorch

    from hrnet_fast.integrations.lightning import AccelerateHRNet

    class LateModule(Task, lightning.pytorch.LightningModule):  # type: ignore[misc]
        """Builds its network where Lightning tells large ones to be built."""

        def configure_model(self) -> None:
            self.network = random_network()

    model = LateModule()
    strategy = lightning.pytorch.strategies.DDPStrategy(process_group_backend="gloo")
    try:
        trainer(lightning.pytorch, tmp_path, AccelerateHRNet(), strategy=strategy, devices=1).fit(model, loader())
    finally:
        torch.distributed.destroy_process_group()
    report = hf.explain(model)
    assert report.fast == len(report.blocks)
    other = LateModule()
    trainer(lightning.pytorch, tmp_path, AccelerateHRNet()).validate(other, loader(), verbose=False)
    assert hf.explain(other).fast == len(report.blocks)


def test_a_model_without_hrnet_is_an_error(tmp_path: Path) -> None:
    import lightning.pytorch

    from hrnet_fast.integrations.lightning import AccelerateHRNet

    class Module(Task, lightning.pytorch.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Conv2d(3, 3, 1).double()

    with pytest.raises(hf.InputError, match="no module with `branches`"):
        trainer(lightning.pytorch, tmp_path, AccelerateHRNet()).fit(Module(), loader())
