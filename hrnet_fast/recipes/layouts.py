"""The layouts of data: which reader of :mod:`hrnet_fast.datasets` reads one, and which of its arguments are paths."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.recipes.sections import DataRecipe
from hrnet_fast.recipes.values import check_choice, converted, unknown_name

_KEYPOINTS = ("pose", "landmarks")


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        reader: a function of :mod:`hrnet_fast.datasets`.
        tasks: that can be trained with it.
        paths: arguments that are paths, relative to the data folder.
        whole: arguments that are the data folder itself where they are not given.
    """

    reader: str
    tasks: tuple[str, ...]
    paths: tuple[str, ...] = ("root",)
    whole: tuple[str, ...] = ("root",)


LAYOUTS: Mapping[str, Layout] = {
    layout.reader: layout
    for layout in (
        Layout("coco_keypoints", _KEYPOINTS, ("annotations", "images", "detections"), ()),
        Layout("mpii", ("pose",)),
        Layout("face_landmarks", _KEYPOINTS, ("table", "images"), ()),
        Layout("cofw", _KEYPOINTS, ("file",), ()),
        Layout("points_csv", _KEYPOINTS, ("table", "images"), ()),
        Layout("deeplabcut", _KEYPOINTS, ("table", "images"), ()),
        Layout("cityscapes", ("segmentation",)),
        Layout("pascal_context", ("segmentation",)),
        Layout("lip", ("segmentation",)),
        Layout("camvid", ("segmentation",)),
        Layout("mask_folders", ("segmentation",), ("images", "masks"), ()),
        Layout("segmentation_list", ("segmentation",), ("list_file", "images", "masks"), ("images",)),
        Layout("image_folder", ("classification",)),
        Layout("coco_instances", ("detection",), ("annotations", "images", "semantic"), ()),
        Layout("voc_boxes", ("detection",)),
    )
}
# Values of `label_map` that stand for a table: {value of a mask: training class}.
LABEL_MAPS = ("cityscapes", "pascal_context", "coco_stuff", "from_one")
# COCO-Stuff's values without a class in its 10k edition (authors' ``lib/datasets/cocostuff.py``).
_COCO_STUFF_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def check_layout(task: str, data: DataRecipe) -> None:
    """Check the reader's name, and the names and types of its arguments.

    Raises:
        ConfigError: the task has no such layout, or an argument is unknown, missing or of another type.
    """
    accepted = [name for name, layout in LAYOUTS.items() if task in layout.tasks]
    check_choice(f"data.layout of task {task}", data.layout, accepted)
    for part in ("train", "val"):
        arguments = getattr(data, part)
        if arguments is None:
            continue
        parameters = _parameters(data.layout)
        for name in arguments:
            if name not in parameters:
                raise unknown_name(f"data.{part}", name, tuple(parameters))
        _converted(data.layout, arguments, f"data.{part}")
        given = {*arguments, *LAYOUTS[data.layout].whole}
        lacking = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in given]
        if lacking:
            raise ConfigError(f"data.{part}: {', '.join(lacking)} missing; the reader {data.layout} needs it.")


def read_data(data: DataRecipe, part: str, folder: Path) -> Any:
    """Return the data set of ``train`` or ``val`` in a folder.

    Raises:
        ConfigError: ``label_map`` names no table.
        DatasetError: a file is missing or malformed.
    """
    layout = LAYOUTS[data.layout]
    arguments = _converted(data.layout, getattr(data, part), f"data.{part}")
    for name in layout.whole:
        arguments.setdefault(name, ".")
    for name in layout.paths:
        if arguments.get(name) is not None:
            arguments[name] = folder / arguments[name]
    if "label_map" in arguments:
        arguments["label_map"] = _label_map(arguments, f"data.{part}.label_map")
    return _reader(data.layout)(**arguments, skip_broken=data.skip_broken)


def _reader(layout: str) -> Callable[..., Any]:
    from hrnet_fast import datasets

    reader: Callable[..., Any] = getattr(datasets, LAYOUTS[layout].reader)
    return reader


def _parameters(layout: str) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(_reader(layout)).parameters)
    del found["skip_broken"]  # a field of the section
    return found


def _converted(layout: str, arguments: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the arguments as the reader's annotations say: YAML has paths as texts, and tuples as lists.

    Raises:
        ConfigError: an argument has another type.
    """
    hints = typing.get_type_hints(_reader(layout))
    hints |= {name: str | None if type(None) in typing.get_args(hints[name]) else str for name in LAYOUTS[layout].paths}
    hints["label_map"] = Any  # a table, or the name of one
    return {name: converted(value, hints[name], f"{path}.{name}") for name, value in arguments.items()}


def _label_map(arguments: Mapping[str, Any], name: str) -> Any:
    """Return a table of a mask's values: given as a mapping, or named (:data:`LABEL_MAPS`)."""
    from hrnet_fast.datasets import cityscapes_label_map, pascal_context_label_map

    value, ignored = arguments["label_map"], arguments.get("ignore_label", 255)
    if isinstance(value, Mapping) or value is None:
        return value
    check_choice(name, value, LABEL_MAPS)
    if value == "cityscapes":
        return cityscapes_label_map(ignored)
    classes = arguments["num_classes"]
    if value == "pascal_context":
        return pascal_context_label_map(classes, ignored)
    used = [k for k in range(1, 183) if k not in _COCO_STUFF_UNUSED] if value == "coco_stuff" else range(1, classes + 1)
    return {0: ignored} | {k: label for label, k in enumerate(used)}
