"""Pictures of classes: torchvision's ``ImageFolder`` and transforms in the workers, normalisation on the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_integer, check_number, check_numbers
from hrnet_fast.datasets.colors import MEAN, STD, ColorAugmentation, check_statistics, normalize
from hrnet_fast.datasets.packed_images import MovedTogether, part_skipped
from hrnet_fast.datasets.reading import check_folder, fail
from hrnet_fast.datasets.samples import SkippedSample
from hrnet_fast.datasets.skipping import AnnotatedImages
from hrnet_fast.errors import InputError, MissingPackageError, shown
from hrnet_fast.keypoints.methods import check_size

POLICIES = ("none", "trivial", "rand", "augmix")
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class ClassSample:
    """One picture of a class.

    Attributes:
        image: uint8 RGB [3, H, W], cropped by the data set's transform; without one, of the file's size.
        label: the class, from 0.
        path: the picture's file.
    """

    image: Tensor
    label: int
    path: str


class ClassificationDataset(AnnotatedImages[ClassSample]):
    """Samples of one picture and its class.

    Args:
        files: (picture, class) of each sample.
        names: names of the classes.
        transform: uint8 [3, H, W] to uint8 [3, h, w], in the workers; None leaves pictures as they are.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Attributes:
        names, num_classes, transform, skipped: as above.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, int]],
        names: Sequence[str],
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(skip_broken)
        self.files, self.names, self.num_classes = list(files), tuple(names), len(names)
        self.transform = transform

    def picture(self, index: int) -> str:
        """Return the path of a sample's picture."""
        return self.files[index][0]

    def subset(self, indices: Sequence[int]) -> ClassificationDataset:
        """Return the samples of these indices."""
        part = self._copied()
        part.files = [self.files[i] for i in indices]
        return part

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> ClassSample:
        """Return a decoded sample.

        Raises:
            DatasetError: the picture cannot be decoded.
        """
        path, label = self.files[index]
        pixels = self._pixels(path).permute(2, 0, 1)  # channels last, in which torchvision resizes bytes quicker
        return ClassSample(pixels.contiguous() if self.transform is None else self.transform(pixels), label, path)


def image_folder(
    root: str | os.PathLike[str],
    split: str = "",
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    skip_broken: bool = False,
) -> ClassificationDataset:
    """Read the pictures below ``root/split``: a folder for each class, in alphabetical order as torchvision's.

    Args:
        root: the folder.
        split: a folder in it, such as ``"train"``; "" for `root` itself.
        transform: see :class:`ClassificationDataset`.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: there is no such folder, or a class without pictures.
        MissingPackageError: torchvision is not installed.
    """
    folder = check_folder("image_folder", check_folder("image_folder", root) / split)
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise _missing() from error
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        accepted = "a folder for each class with pictures in it"
        raise fail(folder, "", f"no classes ({str(error)[:120]})", accepted) from error
    return ClassificationDataset(found.samples, found.classes, transform=transform, skip_broken=skip_broken)


@dataclass(frozen=True)
class ClassificationBatch(MovedTogether):
    """N samples of one size.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        paths, rows: of each sample.
        skipped: what was left out of the batch.
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    rows: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]

    def __len__(self) -> int:
        return len(self.paths)


def collate_classification(samples: Sequence[ClassSample | SkippedSample]) -> ClassificationBatch:
    """Return samples as a batch, for ``DataLoader(collate_fn=...)``; skipped ones are listed apart.

    Raises:
        DatasetError: pictures of different sizes.
    """
    kept, skipped = part_skipped(samples)
    for sample in kept:
        if sample.image.shape != kept[0].image.shape:
            given = f"{list(sample.image.shape)} beside {list(kept[0].image.shape)} in one batch"
            raise fail(sample.path, "", given, "pictures of one size; give a transform that crops")
    return ClassificationBatch(
        images=torch.stack([s.image for s in kept]) if kept else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor([s.label for s in kept], dtype=torch.int64),
        paths=tuple(s.path for s in kept),
        rows=("",) * len(kept),
        skipped=skipped,
    )


@dataclass(frozen=True)
class ClassificationCrops:
    """Makes inputs of pictures of classes: random crops by torchvision in the workers, the rest on the device.

    The defaults are those of the authors' ImageNet configurations (``tools/train.py``): ``RandomResizedCrop(224)`` and
    mirroring; for evaluation the middle 224 pixels of a picture whose shorter side is 256. Both smooth where they
    shrink.

    Attributes:
        input_size: (H, W).
        scale: the smallest and the largest share of the picture's area in a crop.
        ratio: the smallest and the largest aspect (width / height) of a crop.
        flip_probability: share of pictures that are mirrored.
        vertical_flip_probability: share of pictures that are turned upside down.
        policy: further changes by torchvision: ``"none"``, ``"trivial"`` (TrivialAugmentWide), ``"rand"``
            (RandAugment) or ``"augmix"``.
        erase_probability: share of pictures of which a rectangle is erased (RandomErasing, with grey of 0).
        mixup_alpha: parameter of mixup's Beta distribution; 0 mixes no pictures.
        cutmix_alpha: parameter of cutmix's. With both, each batch gets the one or the other, with equal chances.
        resize: length in pixels of the shorter side for evaluation, whose middle is taken.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        colors: random colours, on the device; None leaves them.
        mean, std: of the normalisation.
    """

    input_size: tuple[int, int] = (224, 224)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0
    policy: str = "none"
    erase_probability: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    resize: int = 256
    interpolation: str = "bilinear"
    colors: ColorAugmentation | None = None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __post_init__(self) -> None:
        what = "ClassificationCrops"
        check_size(what, "input_size", self.input_size)
        check_integer(what, "resize", self.resize)
        check_statistics(what, self.mean, self.std)
        for name, most in (("scale", 1.0), ("ratio", float("inf"))):
            pair = check_numbers(what, name, getattr(self, name))
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise InputError(
                    f"{what}: {name}={pair}; accepted are (smallest, largest), above 0 and up to {most:g}."
                )
        for name in ("flip_probability", "vertical_flip_probability", "erase_probability"):
            value = getattr(self, name)
            check_number(what, name, value)
            if not 0 <= value <= 1:
                raise InputError(f"{what}: {name}={value}; accepted are numbers from 0 to 1.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_number(what, name, getattr(self, name))
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{what}: {name}={getattr(self, name)}; accepted are numbers from 0.")
        for name, accepted in (("policy", POLICIES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"{what}: {name}={shown(getattr(self, name))}; accepted are {', '.join(accepted)}.")
        if not isinstance(self.colors, (ColorAugmentation, type(None))):
            raise InputError(f"{what}: colors={shown(self.colors)}; accepted is a ColorAugmentation or None.")

    def transform(self, *, training: bool) -> Callable[[Tensor], Tensor]:
        """Return the crop of one picture, uint8 [3, H, W] to [3, h, w], for the workers.

        Raises:
            MissingPackageError: torchvision is not installed.
        """
        try:
            from torchvision.transforms import v2
        except ImportError as error:
            raise _missing() from error
        how: Any = {"interpolation": v2.InterpolationMode(self.interpolation), "antialias": True}
        if not training:
            middle: Callable[[Tensor], Tensor] = v2.Compose(
                [v2.Resize(self.resize, **how), v2.CenterCrop(self.input_size)]
            )
            return middle
        policies = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "augmix": v2.AugMix}
        steps: list[Any] = [v2.RandomResizedCrop(self.input_size, self.scale, self.ratio, **how)]
        if self.flip_probability:
            steps.append(v2.RandomHorizontalFlip(self.flip_probability))
        if self.vertical_flip_probability:
            steps.append(v2.RandomVerticalFlip(self.vertical_flip_probability))
        if self.policy != "none":
            steps.append(policies[self.policy]())
        if self.erase_probability:
            steps.append(v2.RandomErasing(self.erase_probability))
        crop: Callable[[Tensor], Tensor] = v2.Compose(steps)
        return crop

    def __call__(self, batch: ClassificationBatch, generator: torch.Generator | None = None) -> Tensor:
        """Return images float32 [N, 3, H, W], normalised; with a generator and `colors`, of other colours."""
        images = batch.images
        if self.colors is not None and generator is not None:
            images = self.colors(images, generator)
        return normalize(images, self.mean, self.std)

    def mixing(self, num_classes: int) -> Mix | None:
        """Return what mixes each picture of a batch with the one before it, by torchvision's mixup and cutmix.

        It maps images [N, 3, H, W] and classes [N] to images and the classes' shares, float32 [N, num_classes], on
        their device and without waiting for it. Its random numbers are of torch's global CPU generator. None where both
        parameters are 0.

        Raises:
            MissingPackageError: torchvision is not installed.
        """
        given = {"MixUp": self.mixup_alpha, "CutMix": self.cutmix_alpha}
        if not any(given.values()):
            return None
        try:
            from torchvision.transforms import v2
        except ImportError as error:
            raise _missing() from error
        mixing: Mix = v2.RandomChoice(
            [getattr(v2, name)(alpha=float(alpha), num_classes=num_classes) for name, alpha in given.items() if alpha]
        )
        return mixing

    def evaluating(self) -> ClassificationCrops:
        """Return the same without random colours."""
        return replace(self, colors=None)


def _missing() -> MissingPackageError:
    return MissingPackageError(
        "Classification reads pictures with torchvision, which is not installed: pip install torchvision."
    )
