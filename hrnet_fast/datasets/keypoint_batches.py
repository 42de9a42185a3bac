"""Batches of keypoints: collation, crops, augmentation, heatmap targets; crops on the device or in the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_number, check_numbers
from hrnet_fast.datasets.box_augmentation import NUMBERS, BoxAugmentation, BoxDraw
from hrnet_fast.datasets.colors import MEAN, STD, ColorAugmentation, check_statistics, normalize
from hrnet_fast.datasets.image_warps import warp_images
from hrnet_fast.datasets.packed_images import (
    CroppedImages,
    MovedTogether,
    PackedImages,
    SeparateImages,
    constant,
    pack_images,
    part_skipped,
    separate_images,
    skip_random_numbers,
)
from hrnet_fast.datasets.samples import KeypointSample, SkippedSample
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import encode_keypoints, fit_boxes, mirror_order, warp_matrices
from hrnet_fast.keypoints.methods import check_method, check_size, widest_float


@dataclass(frozen=True)
class CroppedKeypoints(CroppedImages):
    """Crops of N pictures, and the :class:`~hrnet_fast.datasets.BoxDraw` that they are of.

    Attributes:
        boxes, rotations, flips: of the draw.
    """

    boxes: Tensor
    rotations: Tensor
    flips: Tensor

    @property
    def draw(self) -> BoxDraw:
        """The boxes, rotations and mirrored pictures."""
        return BoxDraw(self.boxes, self.rotations, self.flips)


@dataclass(frozen=True)
class KeypointBatch(MovedTogether):
    """N samples; see :class:`~hrnet_fast.datasets.KeypointSample`.

    Attributes:
        images: the pictures, or their crops with the boxes that were drawn (:meth:`KeypointCrops.collate`).
        points, visible, boxes: float32 [N, K, 2], [N, K], [N, 4].
        scores, box_sizes: float64 [N].
        image_ids: int64 [N].
        paths, rows: of each sample.
        skipped: what was left out of the batch.
    """

    images: PackedImages | CroppedKeypoints
    points: Tensor
    visible: Tensor
    boxes: Tensor
    scores: Tensor
    box_sizes: Tensor
    image_ids: Tensor
    paths: tuple[str, ...]
    rows: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]

    def __len__(self) -> int:
        return len(self.paths)


def collate_keypoints(samples: Sequence[KeypointSample | SkippedSample]) -> KeypointBatch:
    """Return samples as a batch, for ``DataLoader(collate_fn=...)``; skipped ones are listed apart."""
    kept, skipped = part_skipped(samples)
    return _batch_of(kept, skipped, pack_images([s.image for s in kept if s.image is not None]))


def _batch_of(
    kept: Sequence[KeypointSample], skipped: tuple[SkippedSample, ...], images: PackedImages | CroppedKeypoints
) -> KeypointBatch:

    def stacked(tensors: list[Tensor], *shape: int) -> Tensor:
        return torch.stack(tensors) if tensors else torch.zeros(0, *shape)

    return KeypointBatch(
        images=images,
        points=stacked([s.points for s in kept], 0, 2),
        visible=stacked([s.visible for s in kept], 0),
        boxes=stacked([s.box for s in kept], 4),
        scores=torch.tensor([s.score for s in kept], dtype=torch.float64),
        box_sizes=torch.tensor([s.box_size for s in kept], dtype=torch.float64),
        image_ids=torch.tensor([s.image_id for s in kept], dtype=torch.int64),
        paths=tuple(s.path for s in kept),
        rows=tuple(s.row for s in kept),
        skipped=skipped,
    )


@dataclass(frozen=True)
class KeypointInputs:
    """What a step needs, on the batch's device.

    Attributes:
        images: float32 [N, 3, H, W], normalised.
        targets: float32 [N, K, h, w].
        weights: float32 [N, K] of the targets.
        points: float32 [N, K, 2] in input pixels, of the mirrored picture where it is mirrored.
        visible: float32 [N, K].
        boxes: float32 [N, 4] in picture pixels, of the input's aspect, for :func:`~hrnet_fast.keypoints.to_image`.
        rotations: float32 [N] in degrees.
        flips: bool [N].
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    points: Tensor
    visible: Tensor
    boxes: Tensor
    rotations: Tensor
    flips: Tensor


@dataclass(frozen=True)
class KeypointCrops:
    """Makes inputs and targets from a :class:`KeypointBatch`, on its device, without synchronisation.

    With a generator, boxes and colours are drawn from it; without one, nothing is random (evaluation).

    Attributes:
        input_size: (H, W) of the network's input.
        heatmap_size: (h, w).
        method: of targets and crops; see :mod:`hrnet_fast.keypoints.methods`.
        sigma: of the targets, in heatmap pixels.
        padding: factor on the boxes after :func:`~hrnet_fast.keypoints.fit_box`.
        augmentation: of boxes; None crops without chance.
        colors: random colours; None leaves them.
        flip_pairs: keypoints that mirroring swaps. Mirroring without them raises.
        upper_body: keypoints of the upper body; without them no box is cut to half a body.
        mirror_at_edge: mirroring maps x to W - x instead of W - 1 - x; None means for ``face``, as the authors' code.
        keypoint_weights: factor on each keypoint's weight (the authors' ``USE_DIFFERENT_JOINTS_WEIGHT``), or None.
        mean, std: of the normalisation.
    """

    input_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    method: str = "msra"
    sigma: float = 2.0
    padding: float = 1.25
    augmentation: BoxAugmentation | None = None
    colors: ColorAugmentation | None = None
    flip_pairs: Sequence[tuple[int, int]] | None = None
    upper_body: Sequence[int] = ()
    mirror_at_edge: bool | None = None
    keypoint_weights: Sequence[float] | None = None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __post_init__(self) -> None:
        what = "KeypointCrops"
        check_method(what, self.method)
        check_size(what, "input_size", self.input_size)
        check_size(what, "heatmap_size", self.heatmap_size)
        for name in ("padding", "sigma"):
            check_number(what, name, getattr(self, name))
            if getattr(self, name) <= 0:
                raise InputError(f"{what}: {name}={getattr(self, name)} must be positive.")
        check_statistics(what, self.mean, self.std)
        if self.keypoint_weights is not None:
            check_numbers(what, "keypoint_weights", self.keypoint_weights)
        if not isinstance(self.upper_body, Sequence) or not all(isinstance(k, int) for k in self.upper_body):
            raise InputError(f"{what}: upper_body={shown(self.upper_body)}; accepted are keypoints' indices.")
        if self.mirror_at_edge is not None:
            check_bool(what, mirror_at_edge=self.mirror_at_edge)
        for name, kind in (("augmentation", BoxAugmentation), ("colors", ColorAugmentation)):
            if not isinstance(getattr(self, name), (kind, type(None))):
                given = shown(getattr(self, name))
                raise InputError(f"{what}: {name}={given}; accepted is a {kind.__name__} or None.")
        if self.augmentation is not None and self.augmentation.flip_probability and self.flip_pairs is None:
            raise InputError(
                f"{what}: pictures are to be mirrored and flip_pairs is None; give the pairs of keypoints that "
                "mirroring swaps (() for none), or flip_probability=0."
            )

    def __call__(self, batch: KeypointBatch, generator: torch.Generator | None = None) -> KeypointInputs:
        """Return inputs and targets.

        Raises:
            InputError: the batch has another number of keypoints than `flip_pairs` or `keypoint_weights` have.
        """
        if not isinstance(batch.images, CroppedKeypoints):
            return self.apply(batch, self.draw(batch, generator), generator)
        if self.augmentation is not None and generator is not None:  # so that colours get the same numbers
            skip_random_numbers(generator, len(batch), NUMBERS)
        return self.apply(batch, batch.images.draw, generator)

    def collate(
        self, samples: Sequence[KeypointSample | SkippedSample], generator: torch.Generator | None = None
    ) -> KeypointBatch:
        """Return a batch as :func:`collate_keypoints` does, of crops in place of whole pictures.

        In a worker this leaves less to copy. Calling this object with the batch, and a generator in the state that this
        one was in, gives the inputs that it gives with the whole pictures.
        """
        kept, skipped = part_skipped(samples)
        images = separate_images([s.image for s in kept if s.image is not None])
        nothing = torch.empty(0)
        batch = _batch_of(kept, skipped, CroppedKeypoints(nothing, images.sizes, nothing, nothing, nothing))
        draw = self.draw(batch, generator)
        crops = self._cropped(images, draw)
        return replace(batch, images=CroppedKeypoints(crops, images.sizes, *draw))

    def apply(self, batch: KeypointBatch, draw: BoxDraw, generator: torch.Generator | None = None) -> KeypointInputs:
        """Return inputs and targets for given boxes; `generator` is for colours."""
        points, visible = self._mirrored(batch, draw.flips)
        matrices = self._matrices(draw)
        points = (points @ matrices[:, :, :2].mT + matrices[:, None, :, 2]) * (visible > 0)[..., None]
        images = batch.images
        crops = images.pixels if isinstance(images, CroppedKeypoints) else self._cropped(images, draw)
        targets, weights = encode_keypoints(
            points, visible, self.input_size, self.heatmap_size, self.method, self.sigma
        )
        if self.keypoint_weights is not None:
            if len(self.keypoint_weights) != points.shape[1]:
                given = f"{len(self.keypoint_weights)} keypoint_weights for {points.shape[1]} keypoints"
                raise InputError(f"KeypointCrops: {given}; give one for each.")
            weights = weights * constant(self.keypoint_weights, weights)
        if self.colors is not None and generator is not None:
            crops = self.colors(crops, generator)
        return KeypointInputs(
            images=normalize(crops, self.mean, self.std),
            targets=targets,
            weights=weights,
            points=points.float(),
            visible=visible,
            boxes=draw.boxes.float(),
            rotations=draw.rotations.float(),
            flips=draw.flips,
        )

    def evaluating(self) -> KeypointCrops:
        """Return the same without augmentation."""
        return replace(self, augmentation=None, colors=None)

    def draw(self, batch: KeypointBatch, generator: torch.Generator | None = None) -> BoxDraw:
        """Return the boxes of a batch: fitted and padded, and with a generator augmented."""
        exact = widest_float(batch.boxes.device)
        boxes = fit_boxes(batch.boxes.to(exact), self.input_size, self.padding)
        if self.augmentation is None or generator is None:
            none = torch.zeros_like(boxes[:, 0])
            return BoxDraw(boxes, none, none > 0)
        return self.augmentation.draw(
            boxes,
            batch.points,
            batch.visible,
            batch.images.sizes[:, 1],
            self.input_size,
            generator,
            upper_body=self.upper_body,
            mirror_at_edge=self._mirrors_at_edge(),
        )

    def _mirrors_at_edge(self) -> bool:
        return self.method == "face" if self.mirror_at_edge is None else self.mirror_at_edge

    def _mirrored(self, batch: KeypointBatch, flips: Tensor) -> tuple[Tensor, Tensor]:
        """Return points (in the widest type) and visibility, mirrored where `flips` is true."""
        points = batch.points.to(widest_float(batch.points.device))
        if self.flip_pairs is None:
            return points, batch.visible
        order = constant(mirror_order(self.flip_pairs, points.shape[1]), points, torch.int64)
        widths = batch.images.sizes[:, 1, None].to(points) - (0 if self._mirrors_at_edge() else 1)
        there = torch.stack([widths - points[..., 0], points[..., 1]], dim=2)[:, order]
        visible = torch.where(flips[:, None], batch.visible[:, order], batch.visible)
        return torch.where(flips[:, None, None], there, points), visible

    def _matrices(self, draw: BoxDraw) -> Tensor:
        return warp_matrices(draw.boxes, self.input_size, self.method, draw.rotations)

    def _cropped(self, images: PackedImages | SeparateImages, draw: BoxDraw) -> Tensor:
        """Return crops uint8 [N, 3, H, W]. ``face`` resizes them, which aligns edges of pixels instead of centres."""
        matrices = self._matrices(draw)
        if self.method == "face":
            moved = matrices[:, :, 2] + matrices[:, :, :2].sum(2) / 2 - 0.5
            matrices = torch.cat([matrices[:, :, :2], moved[..., None]], dim=2)
        return warp_images(images, matrices, self.input_size, draw.flips)
