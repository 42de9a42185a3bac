"""Classification: figures and probabilities by the definition, broken pictures, wrong settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_samples import recipe
from torch import Tensor

from hrnet_fast import datasets
from hrnet_fast.errors import DatasetError, InputError
from hrnet_fast.evaluation import evaluate_classification

LOGITS = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(7)]).float() - 3
LABELS = torch.tensor([0, 3, 5, 1, 1, 2, 4])


class MadePictures(datasets.ClassificationDataset):
    """Pictures whose first pixels, less 128, are logits; the fourth is broken."""

    def __init__(self, classes: int) -> None:
        super().__init__([(f"{i}.png", int(label)) for i, label in enumerate(LABELS)], range(classes), skip_broken=True)

    def read(self, index: int) -> datasets.ClassSample:
        if index == 3:
            raise DatasetError("made: broken", path="3.png")
        image = torch.full((3, 8, 8), 128, dtype=torch.uint8)
        image[0, 0, :6] += LOGITS[index].to(torch.int16).to(torch.uint8)
        path, label = self.files[index]
        return datasets.ClassSample(image, label, path)


def evaluated(network: Any, classes: int = 6, **settings: Any) -> Any:
    options = {"batch_size": 3} | {k: settings.pop(k) for k in ("batch_size", "workers", "progress") if k in settings}
    crops = datasets.ClassificationCrops(mean=(128 / 255,) * 3, std=(1 / 255,) * 3, colors=datasets.ColorAugmentation())
    evaluation = recipe(**{"metric": "top_k"} | settings)
    return evaluate_classification(network, MadePictures(classes), crops, evaluation, "cpu", **options)


def first_pixels(x: Tensor) -> Tensor:
    return x[:, 0, 0, :6]


def test_figures_and_probabilities() -> None:
    done: list[tuple[int, int]] = []
    found = evaluated(first_pixels, progress=lambda *state: done.append(state))
    kept = [0, 1, 2, 4, 5, 6]
    shares, labels = LOGITS[kept].softmax(1), LABELS[kept]
    ranked = LOGITS[kept].argsort(1, descending=True) == labels[:, None]
    assert found.figures == {"top1": ranked[:, 0].double().mean(), "top5": ranked[:, :5].any(1).double().mean()}
    assert [s.figure for s in found.samples] == pytest.approx(shares[range(6), labels].tolist(), rel=1e-4)
    assert [s.answer["class"] for s in found.samples] == shares.argmax(1).tolist()
    assert [s.path for s in found.samples] == [f"{i}.png" for i in kept]
    assert (found.count, found.skipped) == (6, 1)
    assert done == [(3, 7), (6, 7), (7, 7)]
    for options in ({"batch_size": 1}, {"batch_size": 7, "workers": 1}):
        assert evaluated(first_pixels, **options) == found


def test_the_mirrored_pictures_logits_are_averaged() -> None:
    """The first pixel of the mirrored picture is 0, so that the mean is half the first logit."""
    found = evaluated(lambda x: torch.stack([x[:, 0, 0, 0], torch.full((len(x),), 0.7)], 1), classes=2, flip=True)
    assert list(found.figures) == ["top1"], "two classes have no top-5"
    assert [s.answer["class"] for s in found.samples] == [int(LOGITS[i, 0] / 2 < 0.7) for i in (0, 1, 2, 4, 5, 6)]
    assert [s.figure for s in found.samples][1:3] == [0, 0], "no probability for a class that the network lacks"


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="metric='nme'; accepted is 'top_k'"):
        evaluated(first_pixels, metric="nme")
    with pytest.raises(InputError, match="6 classes and the data 9"):
        evaluated(first_pixels, classes=9)
    with pytest.raises(InputError, match=r"accepted is a tensor \[N, classes\]"):
        evaluated(lambda x: x)
    with pytest.raises(InputError, match="batch_size"):
        evaluated(first_pixels, batch_size=0)
