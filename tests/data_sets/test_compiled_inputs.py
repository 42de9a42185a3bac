"""The operators that make inputs on a CPU give the numbers of plain PyTorch; crops of workers are those of the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_files import PAIRS, UPPER, seeded_points
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hrnet_fast as hf
from hrnet_fast import datasets, host_operators
from hrnet_fast.datasets import BoxAugmentation, ColorAugmentation
from hrnet_fast.datasets.packed_images import separate_images
from hrnet_fast.recipes.recipe import LoopRecipe
from hrnet_fast.trainer.batches import TrainingBatches
from hrnet_fast.trainer.sampler import TrainingOrder

needs_extension = pytest.mark.skipif(
    not host_operators.may_call("warp_pictures_cpu"), reason="the compiled extension was not built"
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function as it runs where the extension is missing."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(host_operators, "_is_built", lambda name: False)
            return function()

    return call


def pictures(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Random pictures: of 3 bytes a pixel, of 4, a part of a wider one, mirrored."""
    made = [torch.randint(0, 256, (h, w, 4), dtype=torch.uint8)[..., :3] for h, w in sizes]
    made[0] = made[0].contiguous()
    made[2] = torch.randint(0, 256, (sizes[2][0] + 3, sizes[2][1] + 2, 3), dtype=torch.uint8)[1:-2, 1:-1]
    made[3] = made[3].flip(1).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    return made


@needs_extension
@pytest.mark.parametrize("seed", range(6))
def test_crops_are_the_same_bytes(seed: int, plain: Callable[[Callable[[], Any]], Any]) -> None:
    torch.manual_seed(seed)
    sizes = [tuple(torch.randint(1, 90, (2,)).tolist()) for _ in range(4)] + [(1, 1), (1, 50)]
    found = pictures(sizes)  # type: ignore[arg-type]
    maps = [picture[..., 0] for picture in found]
    matrices = torch.randn(6, 2, 3, dtype=torch.float64) * torch.tensor([1, 1, 20.0])
    matrices[:, [0, 1], [0, 1]] += 2 * torch.rand(6, 1)
    matrices[5] *= 1e-9  # positions beside every integer
    size: Any = tuple(torch.randint(1, 80, (2,)).tolist())
    scaled = torch.randint(1, 200, (6, 2))
    corners = (torch.rand(6, 2) * (scaled - torch.tensor(size)).clamp(min=0)).long()
    flips, mirrored = torch.rand(2, 6) < 0.5

    def cropped(pack: Callable[..., Any]) -> list[Tensor]:
        images, labels, places = pack(found), pack(maps, 7), (scaled, corners, size, flips)
        return [
            datasets.warp_images(images, matrices, size, flips),
            datasets.warp_images(images, matrices, size),
            datasets.resized_parts(images, *places, mirrored=mirrored),
            datasets.resized_parts(labels, *places, nearest=True),
        ]

    for pack in (datasets.pack_images, separate_images):
        for own, expected in zip(cropped(pack), plain(lambda pack=pack: cropped(pack)), strict=True):
            assert torch.equal(own, expected)


@needs_extension
def test_no_pictures_and_wrong_tables() -> None:
    none = separate_images([])
    assert datasets.warp_images(none, torch.zeros(0, 2, 3), (4, 5)).shape == (0, 3, 4, 5)
    picture = [torch.zeros(3, 4, 3, dtype=torch.uint8)]
    table = torch.zeros(1, 4, 5, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="position 3 in a picture of 3"):
        torch.ops.hrnet_fast.resize_pictures_cpu(picture, table + 3, table)
    with pytest.raises(RuntimeError, match="columns Int"):
        torch.ops.hrnet_fast.resize_pictures_cpu(picture, table, table[:, :3])


@needs_extension
def test_normalised_values_are_the_same_bits(plain: Callable[[Callable[[], Any]], Any]) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 5, 1)
    for layout in (None, torch.channels_last):
        own = datasets.normalize(images, memory_format=layout)
        assert torch.equal(own, plain(lambda: datasets.normalize(images)))
        assert own.is_contiguous(memory_format=layout or torch.contiguous_format)


@needs_extension
@pytest.mark.parametrize(("method", "sigma"), [("msra", 2.0), ("face", 1.5)])
def test_heatmaps_are_the_same_bits(method: str, sigma: float, plain: Callable[[Callable[[], Any]], Any]) -> None:
    points = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0)) * 60 + 30
    points[0, 0], points[1, 1] = torch.nan, torch.inf
    visible = torch.arange(120).view(3, 40) % 3 / 2

    def made() -> tuple[Tensor, Tensor]:
        return hf.encode_keypoints(points, visible, (64, 48), (16, 12), method, sigma)

    for own, expected in zip(made(), plain(made), strict=True):
        assert torch.equal(own, expected)
        assert own.max() == 1


class Persons(datasets.AnnotatedImages[datasets.KeypointSample]):
    """Made pictures of different sizes, one of them broken."""

    def __len__(self) -> int:
        return 7

    def read(self, index: int) -> datasets.KeypointSample:
        if index == 3:
            raise hf.DatasetError("broken", path="3.png")
        generator = torch.Generator().manual_seed(index)
        picture = torch.randint(0, 256, (60 + index, 80, 3), generator=generator, dtype=torch.uint8)
        points, visible = (torch.from_numpy(values).float() for values in seeded_points(index))
        return datasets.KeypointSample(picture, points, visible, torch.tensor([5.0, 5, 40, 50]), f"{index}", "")


COLOURS = ColorAugmentation(3, 0.2, 0.2, 0.2, 0.1)
AUGMENTATIONS = {
    "pose": {"augmentation": BoxAugmentation(shift=0.1), "colors": COLOURS, "upper_body": UPPER},
    "face": {"augmentation": BoxAugmentation(half_body_probability=0), "method": "face"},
    "evaluation": {},
}


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_keypoints_cropped_in_workers_are_the_same_inputs(kind: str) -> None:
    """And the loop's batches get a generator in the state that the loop's own will have."""
    crops = datasets.KeypointCrops((64, 48), (16, 12), flip_pairs=PAIRS, **AUGMENTATIONS[kind])  # type: ignore[arg-type]

    class Task:
        train, collate, collate_crops = (
            Persons(skip_broken=True),
            staticmethod(datasets.collate_keypoints),
            crops.collate,
        )

    class WholePictures(Task):
        collate_crops = None  # type: ignore[assignment]

    order = TrainingOrder(7, LoopRecipe(epochs=1, batch_size=6, accumulate=2))
    batches = [TrainingBatches(task, order, 0, 0, torch.device("cpu")) for task in (Task, WholePictures)]
    for micro in range(2):
        found, whole = (each.next() for each in batches)
        assert found.images.pixels.shape == (3, 3, 64, 48)
        made = []
        for batch in (found, whole):
            generator = torch.Generator().manual_seed(order.augmentation_seed(0, micro))
            made.append(vars(crops(batch, generator)))
        assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
        assert (found.paths, found.skipped) == (whole.paths, whole.skipped)
    for each in batches:
        each.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"colors": COLOURS, "swapped_classes": [(3, 4)]},
        {"flip_first": True},
        {"stretch": True},
        {"resize_shorter": 50, "flip_first": True},
    ],
)
def test_segments_cropped_in_workers_are_the_same_inputs(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    samples: list[Any] = [
        datasets.SegmentationSample(
            *(25 * torch.randint(0, 9, (h, 70, *channels), dtype=torch.uint8) for channels in ((3,), ())), "", ""
        )
        for h in (40, 50, 90)
    ]
    samples.insert(1, datasets.SkippedSample("a", "", "gone"))
    crops = datasets.SegmentationCrops((48, 48), 60, **fields)
    for seed in range(3):
        cropped = crops.collate(samples, torch.Generator().manual_seed(seed), 200)
        whole = datasets.CollateSegmentation(200)(samples)
        own, expected = (crops(batch, torch.Generator().manual_seed(seed)) for batch in (cropped, whole))
        assert torch.equal(own.images, expected.images)
        assert torch.equal(own.labels, expected.labels)
        assert cropped.skipped == whole.skipped
    unlabelled = [datasets.SegmentationSample(samples[0].image, None, "", "")]
    with pytest.raises(hf.InputError, match="training needs masks"):
        crops(crops.collate(unlabelled, torch.Generator()), torch.Generator())


def test_what_is_traced_has_pytorchs_operators() -> None:
    images, number = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (0.5, 0.5, 0.5)
    with FakeTensorMode() as mode:
        assert datasets.normalize(mode.from_tensor(images), number, number).shape == images.shape
    traced = torch.jit.trace(lambda x: datasets.normalize(x, number, number), images)  # type: ignore[no-untyped-call]
    assert "hrnet_fast::" not in str(traced.graph)
