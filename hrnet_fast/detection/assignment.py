"""Assignment of boxes to objects, and the random sample of them that is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.detection.boxes import box_iou, covered_share
from hrnet_fast.detection.config_parts import AssignConfig, SampleConfig
from hrnet_fast.detection.results import Target

BACKGROUND, LEFT_OUT = -1, -2


def assign(boxes: Tensor, target: Target, config: AssignConfig) -> Tensor:
    """Return for each of `boxes` [K, 4] the index of its object, ``BACKGROUND`` or ``LEFT_OUT``, [K].

    A box takes the object that it overlaps most. With ``match_low_quality``, each object then takes the boxes that
    overlap it most, whatever they had; of several such objects the last has the box.
    """
    objects = target.boxes
    if len(objects) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = box_iou(objects, boxes)
    if len(boxes) == 0:
        return torch.full((0,), BACKGROUND, device=boxes.device)
    if config.ignore_iof > 0 and target.ignored is not None and len(target.ignored):
        ignored = covered_share(boxes, target.ignored).amax(dim=1) > config.ignore_iof
        overlaps = overlaps.masked_fill(ignored, -1.0)
    best, index = overlaps.max(dim=0)
    found = torch.full_like(index, LEFT_OUT)
    found[(best >= 0) & (best < config.negative_iou)] = BACKGROUND
    found = torch.where(best >= config.positive_iou, index, found)
    if config.match_low_quality:
        most = overlaps.amax(dim=1, keepdim=True)
        chosen = (overlaps == most) & (most >= config.least_iou)
        number = torch.arange(len(objects), device=boxes.device)[:, None]
        last = torch.where(chosen, number, -1).amax(dim=0)
        found = torch.where(last >= 0, last, found)
    return found


def draw_some(candidates: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """Return `number` of the candidates [K], drawn at random."""
    where = generator.device if generator is not None else candidates.device
    order = torch.randperm(len(candidates), generator=generator, device=where)
    return candidates[order[:number].to(candidates.device)]


def sample(found: Tensor, config: SampleConfig, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the indices of the positives and of the negatives to train on, both ascending.

    Args:
        found: what :func:`assign` returned, [K].
        config: numbers of both.
        generator: draws if there are more; None takes torch's own.
    """
    positives, negatives = (found >= 0).nonzero()[:, 0], (found == BACKGROUND).nonzero()[:, 0]
    most = int(config.number * config.positive_fraction)
    if len(positives) > most:
        positives = draw_some(positives, most, generator).sort().values
    rest = config.number - len(positives)
    if len(negatives) > rest:
        negatives = draw_some(negatives, rest, generator).sort().values
    return positives, negatives


@dataclass
class Sample:
    """The boxes of an image that a stage is trained on, positives first.

    Attributes:
        boxes: [P + Q, 4].
        positives: P.
        objects: index of each positive's object [P].
        labels: class of each box, that of the background for negatives [P + Q].
        goals: boxes of the positives' objects [P, 4].
        is_object: whether each positive is an object's own box [P].
    """

    boxes: Tensor
    positives: int
    objects: Tensor
    labels: Tensor
    goals: Tensor
    is_object: Tensor

    @property
    def positive_boxes(self) -> Tensor:
        return self.boxes[: self.positives]


def sample_regions(
    boxes: Tensor,
    target: Target,
    classes: int,
    assign_config: AssignConfig,
    sample_config: SampleConfig,
    generator: torch.Generator | None,
) -> Sample:
    """Assign and sample an image's proposals [K, 4]; objects' own boxes stand before them if they take part."""
    found = assign(boxes, target, assign_config)
    own = len(target.boxes) if sample_config.add_objects else 0
    if own:
        boxes = torch.cat([target.boxes, boxes])
        found = torch.cat([torch.arange(own, device=boxes.device), found])
    positives, negatives = sample(found, sample_config, generator)
    objects = found[positives]
    background = torch.full_like(negatives, classes)
    return Sample(
        boxes[torch.cat([positives, negatives])],
        len(positives),
        objects,
        torch.cat([target.labels[objects], background]),
        target.boxes[objects],
        positives < own,
    )
