"""Training of classification: random crops by torchvision in the workers, the rest on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.datasets import ClassificationBatch, ClassificationCrops, ClassificationDataset, collate_classification
from hrnet_fast.errors import ConfigError
from hrnet_fast.evaluation.classification import check_classification_evaluation
from hrnet_fast.random_states import kept_host_random_states, seed_host_generators
from hrnet_fast.recipes.task_fields import make_inputs
from hrnet_fast.trainer.recipe_task import RecipeTask


class ClassificationTask(RecipeTask):
    """Classes of pictures; see :class:`~hrnet_fast.trainer.recipe_task.RecipeTask`.

    Attributes:
        crops: what makes the inputs.
    """

    evaluator = "evaluate_classification"
    train: ClassificationDataset
    val: ClassificationDataset | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.collate = collate_classification
        self.crops: ClassificationCrops = make_inputs(self.recipe.task, self.recipe.inputs)
        self.train.transform = self.crops.transform(training=True)
        self._mix = self.crops.mixing(self.outputs)
        if self._mix is not None and self.recipe.loop.batch_size // self.recipe.loop.accumulate < 2:
            raise ConfigError(
                f"loop.batch_size={self.recipe.loop.batch_size} with loop.accumulate={self.recipe.loop.accumulate}: "
                "inputs.mixup_alpha and inputs.cutmix_alpha mix the pictures of a micro-batch, which has to have 2."
            )
        if self.val is not None:
            self.val.transform = self.crops.transform(training=False)
            self._check_best(check_classification_evaluation(self.val, self.evaluation()))

    @property
    def outputs(self) -> int:
        return self.train.num_classes

    def make_loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=self.recipe.loss["label_smoothing"]).to(self.device)

    def inputs(self, batch: ClassificationBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images [N, 3, H, W] and classes [N]; mixed ones with the classes' shares [N, C].

        Mixing waits for the generator's device; the loop's is the CPU.
        """
        images = self.crops(batch, generator)
        if self._mix is None:
            return images, batch.labels
        with kept_host_random_states():
            seed_host_generators(int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device)))
            mixed: tuple[Tensor, Tensor] = self._mix(images, batch.labels)
        return mixed

    def _read_data(self) -> tuple[ClassificationDataset, ClassificationDataset | None]:
        train, val = super()._read_data()
        if val is not None and val.names != train.names:
            raise ConfigError(
                f"data.val has {len(val.names)} classes and data.train {len(train.names)}, or of other names; give "
                "folders of the same names."
            )
        return train, val
