"""Flip test: mapping the heatmaps of mirrored images back, by swapped channels and a shift."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_integer, check_tensor
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints.keypoint_sets import get_keypoint_set
from hrnet_fast.keypoints.methods import NO_HEATMAPS, check_method

Pairs = str | Sequence[tuple[int, int]] | Sequence[int]


def mirror_order(pairs: Pairs, channels: int) -> list[int]:
    """Return, for each channel, the index of its mirrored channel.

    Args:
        pairs: swapped channels ``[(1, 2), (3, 4)]``, mmpose's ``flip_indices`` of all channels ``[0, 2, 1, 4, 3]``, or
            the name of a data set: ``"coco"``, ``"mpii"``, ``"wflw"``, ``"300w"``, ``"cofw"`` or ``"aflw"``. Tensors
            and arrays are read as lists. An empty sequence swaps nothing.
        channels: number of channels.

    Raises:
        InputError: `pairs` has another form, names a channel that does not exist or twice, or has another number of
            channels.
    """
    if isinstance(pairs, str):
        dataset = get_keypoint_set(pairs)
        if dataset.channels != channels:
            raise InputError(f"pairs={pairs!r} are of {dataset.channels} keypoints; the network has {channels}.")
        pairs = dataset.pairs
    check_integer("mirror_order", "channels", channels, least=0)
    given = _as_list(pairs)
    if any(isinstance(item, bool) for item in given):
        raise InputError(f"pairs={_shorten(pairs)} given; {_ACCEPTED}")
    if all(isinstance(item, int) for item in given):
        order = given or list(range(channels))
        if sorted(order) != list(range(channels)) or any(order[order[i]] != i for i in range(channels)):
            raise InputError(
                f"pairs={_shorten(pairs)}: a list of indices names, for each of the network's {channels} channels, the "
                "one that mirrors it."
            )
        return order
    order = list(range(channels))
    for a, b in _check_pairs(pairs, given):
        if not (0 <= a < channels and 0 <= b < channels):
            raise InputError(f"pairs={_shorten(pairs)}: {(a, b)} given; the network has {channels} channels.")
        if order[a] != a or order[b] != b:
            raise InputError(f"pairs={_shorten(pairs)} name a channel more than once; a mirror swaps it with one.")
        order[a], order[b] = b, a
    return order


def needs_shift(method: str | None) -> bool:
    """Whether the maps of a mirrored image need a shift by one heatmap pixel to align with the image's.

    ``msra`` and ``dark``: yes. Heatmap pixel p corresponds to input pixel 4p; the mirrored pixel w - 1 - p corresponds
    to one 3 input pixels beside the mirror of 4p (authors' ``TEST.SHIFT_HEATMAP``, mmpose's ``shift_heatmap``).
    ``udp``: no, the ends of a row coincide. ``face``: no, the half pixel that is added after truncation leaves an
    offset of a quarter heatmap pixel, which a shift would increase to five quarters. ``none`` (no heatmaps): no.
    None (unknown): yes.

    Raises:
        InputError: `method` is unknown.
    """
    if method in (None, NO_HEATMAPS):
        return method is None
    check_method("needs_shift", method)
    return method in ("msra", "dark")


def flip_back(heatmaps: Tensor, pairs: Pairs, *, shift: bool) -> Tensor:
    """Return the heatmaps of mirrored images as heatmaps of the images.

    Args:
        heatmaps: [N, K, h, w] of the mirrored images.
        pairs: see :func:`mirror_order`.
        shift: shift the maps by one pixel to the right; the first column stays (authors' ``lib/core/function.py``).

    Returns:
        [N, K, h, w] in the dtype of `heatmaps`.

    Raises:
        InputError: an argument has an unsupported type or shape.
    """
    check_tensor("flip_back", "heatmaps", heatmaps)
    check_bool("flip_back", shift=shift)
    if heatmaps.dim() != 4:
        raise InputError(f"flip_back: heatmaps {list(heatmaps.shape)} given; accepted are [N, K, h, w].")
    back = heatmaps.flip(3)
    order = mirror_order(pairs, heatmaps.shape[1])
    if order != list(range(len(order))):
        back = back[:, order]
    return torch.cat([back[..., :1], back[..., :-1]], dim=3) if shift else back


def _as_list(pairs: Any) -> list[Any]:
    """Return `pairs` as a list, with tensors and arrays converted.

    Raises:
        InputError: `pairs` is no sequence.
    """
    if hasattr(pairs, "tolist"):
        pairs = pairs.tolist()
    if not isinstance(pairs, Iterable) or isinstance(pairs, (dict, bytes)):
        raise InputError(f"pairs={_shorten(pairs)} given; {_ACCEPTED}")
    return [_as_builtin(item) for item in pairs]


def _as_builtin(item: Any) -> Any:
    return item.tolist() if hasattr(item, "tolist") else item


def _check_pairs(pairs: Any, given: list[Any]) -> list[tuple[int, int]]:
    found = []
    for item in given:
        pair = [_as_builtin(i) for i in item] if isinstance(item, (tuple, list)) else []
        if len(pair) != 2 or not all(isinstance(i, int) for i in pair) or pair[0] == pair[1]:
            raise InputError(f"pairs={_shorten(pairs)} given; {_ACCEPTED}")
        found.append((pair[0], pair[1]))
    return found


def _shorten(pairs: Any) -> str:
    text = repr(pairs if isinstance(pairs, str) or not hasattr(pairs, "tolist") else pairs.tolist())
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


_ACCEPTED = (
    "accepted are pairs of channels [(1, 2), (3, 4)], mmpose's index of every channel [0, 2, 1, 4, 3], or the name of "
    "a data set."
)
