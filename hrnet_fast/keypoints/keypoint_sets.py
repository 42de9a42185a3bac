"""Keypoint data sets: mirror pairs, names and bones of their channels, and what their metrics take as scale.

Indices are those in the authors' repositories (``lib/dataset`` of pose, ``lib/utils/transforms.py`` of faces, there
partly from 1) and in mmpose's ``configs/_base_/datasets``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hrnet_fast.errors import InputError


@dataclass(frozen=True)
class KeypointSet:
    """Keypoints of one data set.

    Attributes:
        name: value of ``pairs=``.
        channels: number of keypoints.
        pairs: channels that mirroring swaps.
        names: names of the channels; their indices if the data set has no names.
        bones: channels to connect in a drawing.
        sigmas: OKS's standard deviation of each keypoint's annotations, over the root of the object's area; empty where
            the data set has none (COCO's keypoint evaluation, ``pycocotools/cocoeval.py``).
        interocular: the channels whose distance divides a face's errors (authors' face ``lib/core/evaluation.py``).
    """

    name: str
    channels: int
    pairs: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()
    interocular: tuple[int, int] | None = None


def _mirrored_ranges(first: Iterable[int], last: int) -> tuple[tuple[int, int], ...]:
    """Pair the indices of `first` in order with `last`, `last` - 1, ..."""
    return tuple((a, last - i) for i, a in enumerate(first))


def _face_set(
    name: str, channels: int, *pairs: tuple[tuple[int, int], ...], interocular: tuple[int, int] | None = None
) -> KeypointSet:
    mirrored = tuple(p for group in pairs for p in group)
    return KeypointSet(name, channels, mirrored, tuple(map(str, range(channels))), interocular=interocular)


COCO = KeypointSet(
    "coco",
    17,
    pairs=tuple((i, i + 1) for i in range(1, 17, 2)),
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    bones=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    sigmas=tuple(
        s / 10 for s in (.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89)
    ),
)  # fmt: skip
MPII = KeypointSet(
    "mpii",
    16,
    pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist",
    ),
    bones=(
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (8, 12), (12, 11), (11, 10), (8, 13),
        (13, 14), (14, 15),
    ),
)  # fmt: skip
WFLW = _face_set(
    "wflw",
    98,
    _mirrored_ranges(range(16), 32),  # outline
    _mirrored_ranges(range(33, 38), 46),  # brows
    _mirrored_ranges(range(38, 42), 50),
    ((55, 59), (56, 58)),  # nose
    _mirrored_ranges(range(60, 65), 72),  # eyes
    _mirrored_ranges(range(65, 68), 75),
    _mirrored_ranges(range(76, 79), 82),  # mouth
    ((83, 87), (84, 86), (88, 92), (89, 91), (93, 95)),
    ((96, 97),),  # pupils
    interocular=(60, 72),
)
FACE_300W = _face_set(
    "300w",
    68,
    _mirrored_ranges(range(8), 16),
    _mirrored_ranges(range(17, 22), 26),
    _mirrored_ranges(range(31, 33), 35),
    _mirrored_ranges(range(36, 40), 45),
    _mirrored_ranges(range(40, 42), 47),
    _mirrored_ranges(range(48, 51), 54),
    ((55, 59), (56, 58), (60, 64), (61, 63), (65, 67)),
    interocular=(36, 45),
)
COFW = _face_set(
    "cofw",
    29,
    ((0, 1), (2, 3), (4, 6), (5, 7), (8, 9), (10, 11), (12, 14), (13, 15), (16, 17), (18, 19), (22, 23)),
    interocular=(8, 9),
)
AFLW = _face_set("aflw", 19, _mirrored_ranges(range(3), 5), _mirrored_ranges(range(6, 9), 11), ((12, 14), (15, 17)))

KEYPOINT_SETS: dict[str, KeypointSet] = {d.name: d for d in (COCO, MPII, WFLW, FACE_300W, COFW, AFLW)}


def keypoint_set_of(channels: int) -> KeypointSet | None:
    """Return the data set with that number of keypoints, or None."""
    return next((d for d in KEYPOINT_SETS.values() if d.channels == channels), None)


def get_keypoint_set(name: str) -> KeypointSet:
    """Return a data set by name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in KEYPOINT_SETS:
        raise InputError(f"keypoints of {name!r} are not known; accepted are {', '.join(KEYPOINT_SETS)}.")
    return KEYPOINT_SETS[name]
