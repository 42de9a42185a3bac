"""Random boxes for crops around persons and faces, drawn for a whole batch; each habit of the authors' is a field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from hrnet_fast.checks import check_integer, check_number
from hrnet_fast.datasets.packed_images import constant, random_numbers
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import fit_boxes

DISTRIBUTIONS = ("clipped_normal", "truncated_normal", "uniform")
# The authors choose the upper body where a standard normal number, not a uniform one, is below one half.
_NORMAL_BELOW_HALF = 0.6914624612740131


NUMBERS = 9  # that a sample takes from the generator


class BoxDraw(NamedTuple):
    """Boxes of the input's aspect, float64 [N, 4], their rotations in degrees [N], and which pictures are mirrored."""

    boxes: Tensor
    rotations: Tensor
    flips: Tensor


@dataclass(frozen=True)
class BoxAugmentation:
    """How boxes are scaled, turned, moved, mirrored and cut to half a body.

    The defaults are those of the authors' COCO configurations (``lib/dataset/JointsDataset.py``). Their MPII: scale
    0.25, rotation 30, half_body_probability 0. Their faces (``lib/datasets/wflw.py``): distribution "uniform", scale
    0.25, rotation 30, rotation_probability 0.6, half_body_probability 0. mmpose: distribution "truncated_normal", scale
    0.5, rotation 80, shift 0.16, upper_body_probability 0.7, half_body_keypoints 8.

    Attributes:
        distribution: of scale, rotation and shift. ``"clipped_normal"``: normal with standard deviation `scale`,
            clipped at plus and minus `scale`; the rotation clipped at `rotation_clip` times `rotation`.
            ``"truncated_normal"``: standard normal between -1 and 1, times the value. ``"uniform"``: between minus and
            plus the value.
        scale: the box is multiplied by 1 + a number of that spread; below 1.
        rotation: degrees.
        rotation_probability: share of samples that are turned.
        rotation_clip: multiple of `rotation` at which a clipped normal ends.
        shift: the box moves by a number of that spread, times its width and height. The authors do not shift.
        shift_probability: share of samples that are moved.
        flip_probability: share of pictures that are mirrored.
        half_body_probability: share of persons with enough visible keypoints that are cut to half a body.
        half_body_keypoints: more visible keypoints than these are enough.
        half_body_padding: factor on the half body's box.
        upper_body_probability: share of upper bodies where both halves have more than 2 visible keypoints.
    """

    distribution: str = "clipped_normal"
    scale: float = 0.35
    rotation: float = 45.0
    rotation_probability: float = 0.6
    rotation_clip: float = 2.0
    shift: float = 0.0
    shift_probability: float = 0.3
    flip_probability: float = 0.5
    half_body_probability: float = 0.3
    half_body_keypoints: int = 8
    half_body_padding: float = 1.5
    upper_body_probability: float = _NORMAL_BELOW_HALF

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            accepted = ", ".join(DISTRIBUTIONS)
            raise InputError(f"BoxAugmentation: distribution={shown(self.distribution)}; accepted are {accepted}.")
        check_integer("BoxAugmentation", "half_body_keypoints", self.half_body_keypoints, least=0)
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            check_number("BoxAugmentation", field.name, value)
            most = 1.0 if field.name.endswith("probability") or field.name in ("scale", "shift") else math.inf
            if not 0 <= value <= most or (field.name == "scale" and value == 1):
                raise InputError(f"BoxAugmentation: {field.name}={value}; accepted are numbers from 0 to {most:g}.")

    def draw(
        self,
        boxes: Tensor,
        points: Tensor,
        visible: Tensor,
        widths: Tensor,
        input_size: Sequence[int],
        generator: torch.Generator,
        *,
        upper_body: Sequence[int] = (),
        mirror_at_edge: bool = False,
    ) -> BoxDraw:
        """Return new boxes; nothing waits for the device.

        Args:
            boxes: [N, 4] of the input's aspect (:func:`~hrnet_fast.keypoints.fit_boxes`), padded.
            points: [N, K, 2] in picture pixels, before mirroring.
            visible: [N, K].
            widths: [N], the pictures' widths in pixels.
            input_size: (H, W) of the network's input.
            generator: gives `NUMBERS` numbers for each sample, whatever the fields are.
            upper_body: keypoints of the upper body; without them no box is cut to half a body.
            mirror_at_edge: x becomes W - x (the authors' faces) instead of W - 1 - x.
        """
        numbers = random_numbers(generator, boxes.shape[0], NUMBERS, boxes).to(boxes.dtype)
        chances, spread = numbers[:, :5].unbind(1), self._spread(numbers[:, 5:])
        if upper_body and self.half_body_probability:
            halves, found = self._half_bodies(points.to(boxes), visible > 0, upper_body, chances[1], input_size)
            taken = (
                found & ((visible > 0).sum(1) > self.half_body_keypoints) & (chances[0] < self.half_body_probability)
            )
            boxes = torch.where(taken[:, None], halves, boxes)
        centre, sides = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]
        moved = (chances[4] < self.shift_probability)[:, None] * spread[:, 2:] * self.shift
        centre = centre + moved.clamp(-self.shift, self.shift) * sides
        sides = sides * (1 + (spread[:, :1] * self.scale).clamp(-self.scale, self.scale))
        most = self.rotation * (self.rotation_clip if self.distribution == "clipped_normal" else 1)
        rotations = (spread[:, 1] * self.rotation).clamp(-most, most)
        rotations = torch.where(chances[2] < self.rotation_probability, rotations, 0.0)
        flips = chances[3] < self.flip_probability
        mirrored = widths.to(boxes) - centre[:, 0] - (0 if mirror_at_edge else 1)
        centre = torch.stack([torch.where(flips, mirrored, centre[:, 0]), centre[:, 1]], dim=1)
        return BoxDraw(torch.cat([centre - sides / 2, sides], dim=1), rotations, flips)

    def _spread(self, numbers: Tensor) -> Tensor:
        """Return numbers in [0, 1) as numbers of the distribution, of spread 1."""
        centred = 2 * numbers - 1
        if self.distribution == "uniform":
            return centred
        within = math.erf(math.sqrt(0.5)) if self.distribution == "truncated_normal" else 1.0
        # The inverse of 0 is minus infinity, which the callers' limits cut, and 0 times which is not a number.
        return (math.sqrt(2) * torch.erfinv(centred * within)).clamp(-9, 9)

    def _half_bodies(
        self, points: Tensor, seen: Tensor, upper_body: Sequence[int], chance: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes of half bodies [N, 4], and where there is one (``half_body_transform``)."""
        is_upper = constant([k in upper_body for k in range(seen.shape[1])], seen)
        upper, lower = seen & is_upper, seen & ~is_upper
        many_upper, many_lower = upper.sum(1) > 2, lower.sum(1) > 2
        choose_upper = ((chance < self.upper_body_probability) & many_upper) | ~many_lower
        chosen = torch.where(choose_upper[:, None], upper, lower)
        count = chosen.sum(1)
        marks = chosen[..., None]
        centre = (points * marks).sum(1) / count.clamp(min=1)[:, None]
        first = torch.where(marks, points, torch.inf).amin(1)
        sides = torch.where(marks, points, -torch.inf).amax(1) - first
        sides = torch.where((count >= 2)[:, None], sides, 1.0)
        # The box is centred on the mean of the points. fit_boxes keeps the centre.
        boxes = fit_boxes(torch.cat([centre - sides / 2, sides], dim=1), size, self.half_body_padding)
        return boxes, (count >= 2) & (sides.amax(1) > 0)
