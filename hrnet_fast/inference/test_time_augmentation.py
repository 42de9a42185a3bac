"""Test-time augmentation of pose and segmentation networks: mirror images and several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.checks import check_bool, check_integer, check_numbers
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import Pairs, flip_back, mirror_order, needs_shift
from hrnet_fast.keypoints.methods import named_method

Network = Callable[[Tensor], Tensor]


def flip_test(network: Network, x: Tensor, pairs: Pairs = (), *, shift: bool | None = None) -> Tensor:
    """Return the mean of a network's maps for images and, flipped back, for their mirror images, in one call of 2N.

    Args:
        network: [2N, C, H, W] to maps [2N, K, h, w]: an engine or a model.
        x: [N, C, H, W].
        pairs: channels that a mirror swaps, such as left and right wrist: ``[(1, 2), (3, 4)]``, mmpose's index of
            every channel ``[0, 2, 1, 4, 3]``, or a data set's name (``"coco"``, ``"mpii"``, ``"wflw"``, ``"300w"``,
            ``"cofw"``, ``"aflw"``); empty for segmentation.
        shift: move the flipped-back maps one pixel to the right, as the authors' pose evaluation does
            (``TEST.SHIFT_HEATMAP``): heatmaps of a mirror image are not aligned with the image's. None: where there
            are pairs, and the network's ``keypoints`` (or a wrapped network's) is ``"msra"``, ``"dark"`` or not known
            (:func:`hrnet_fast.keypoints.needs_shift`).

    Raises:
        InputError: the network returns something else than one tensor of maps, or `pairs` name channels it has not.
    """
    _check_network("flip_test", network)
    _check_images("flip_test", x)
    if shift is not None:
        check_bool("flip_test", shift=shift)
    maps = network(torch.cat([x, x.flip(3)]))
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        raise InputError("flip_test: the network must return one tensor [N, K, h, w].")
    order = mirror_order(pairs, maps.shape[1])
    if shift is None:
        shift = order != list(range(len(order))) and needs_shift(named_method(network))
    straight, mirrored = maps.chunk(2)
    return (straight + flip_back(mirrored, order, shift=shift)) / 2


def multi_scale(
    network: Network,
    x: Tensor,
    scales: Sequence[float],
    *,
    flip: bool = True,
    align_corners: bool = True,
    divisor: int = 1,
) -> Tensor:
    """Return the mean of a segmentation network's logits over scaled (and mirrored) copies of the images.

    The authors' evaluation adds up exponentials of logits instead: pass ``lambda x: engine(x).exp()`` for that.

    Args:
        network: [N, C, H, W] to logits [N, K, h, w].
        x: [N, C, H, W].
        scales: factors of height and width; each is one call.
        flip: take the mean with the mirror images at every scale (:func:`flip_test`).
        align_corners: of both interpolations, bilinear; True is what the authors' segmentation networks use.
        divisor: scaled sizes are rounded up to multiples of it, for networks that ask for them.

    Returns:
        [N, K, H, W], logits upsampled to the size of `x`.

    Raises:
        InputError: no scale or one that is not positive, a divisor below 1, or a network that returns something else
            than one tensor of maps.
    """
    _check_network("multi_scale", network)
    check_integer("multi_scale", "divisor", divisor)
    check_bool("multi_scale", flip=flip, align_corners=align_corners)
    scales = check_numbers("multi_scale", "scales", scales, "positive factors")
    if min(scales) <= 0:
        raise InputError(f"multi_scale: scales={list(scales)}; give one or more positive factors.")
    _check_images("multi_scale", x)
    total: Tensor | None = None
    height, width = x.shape[2:]
    for scale in scales:
        size = [max(1, -(-round(n * scale) // divisor)) * divisor for n in (height, width)]
        scaled = x
        if size != [height, width]:
            scaled = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
        logits = flip_test(network, scaled) if flip else network(scaled)
        if not isinstance(logits, Tensor) or logits.dim() != 4:
            raise InputError("multi_scale: the network must return one tensor [N, K, h, w].")
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=align_corners)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(scales)


def _check_network(what: str, network: object) -> None:
    if not callable(network) or isinstance(network, type):
        raise InputError(f"{what}: network is {shown(network)}; accepted is a model, an engine or a function.")


def _check_images(what: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else shown(x)
        raise InputError(f"{what}: {given} given; accepted are floating images [N, C, H, W], normalised.")
