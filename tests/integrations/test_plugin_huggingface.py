"""The callback in ``transformers.Trainer``.

The package is imported where it is used: of the workers that collect this file, one runs it.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import image, relative_l2, tiny
from torch import Tensor, nn

import hrnet_fast as hf

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


class Model(nn.Module):
    """A network that returns its loss, as the trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.network = hf.restore(tiny("v1").double())

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        out = self.network(pixel_values)
        return {"loss": out.square().mean(), "logits": out}


class Images(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": image(32, 32, dtype=torch.float64)[0] * (index + 1)}


def trainer(folder: Path, accelerate: dict[str, Any] | None, **options: Any) -> Any:
    """Return a trainer, with the callback and its options if they are given."""
    from transformers import Trainer, TrainingArguments

    from hrnet_fast.integrations.huggingface import AccelerateHRNet

    callbacks = [] if accelerate is None else [AccelerateHRNet(**accelerate)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=2, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0, log_level="info",
    )  # fmt: skip
    return Trainer(args=arguments, train_dataset=Images(), eval_dataset=Images(), callbacks=callbacks, **options)


@pytest.mark.slow
def test_the_callback_accelerates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # caplog sees a record once or twice: transformers' logger propagates where the variable CI is set.
    fast, records = Model(), list[logging.LogRecord]()
    monkeypatch.setattr(logging.getLogger("transformers.hrnet_fast"), "handle", records.append)
    plain = copy.deepcopy(fast)
    trainer(tmp_path, None, model=plain).train()
    trainer(tmp_path, {"memory": "min"}, model=fast).train()
    state = fast.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(relative_l2(state[k], v) < 1e-8 for k, v in plain.state_dict().items())
    assert len(records) == 1
    report = hf.explain(fast)
    assert records[0].getMessage() == f"accelerate: {report}"
    assert (report.fast, records[0].levelno) == (len(report.blocks), logging.INFO)
    assert fast.network.stage2[0].fused_settings.memory == "min"


def test_models_that_the_trainer_makes_are_accelerated(tmp_path: Path) -> None:
    made: list[Model] = []

    def make() -> Model:
        made.append(Model())
        return made[-1]

    own = trainer(tmp_path, {}, model_init=make)
    own.evaluate()
    own.train()
    assert len(made) == 2
    for model in made:
        report = hf.explain(model)
        assert report.fast == len(report.blocks)
