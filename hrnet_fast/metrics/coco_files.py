"""COCO's annotations as its evaluators take them, and which evaluator is installed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrnet_fast.checks import check_path
from hrnet_fast.errors import InputError, shown

# Package: the modules of its COCO and of its evaluation, and the evaluation's class.
EVALUATORS = {
    "faster-coco-eval": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
}


def find_evaluator(evaluator: str | None) -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval of a package.

    Raises:
        InputError: the package is unknown or not installed.
    """
    if evaluator is not None and evaluator not in EVALUATORS:
        raise InputError(f"evaluator={shown(evaluator)} given; accepted are {', '.join(EVALUATORS)} and None.")
    missing = []
    for package in EVALUATORS if evaluator is None else (evaluator,):
        coco_module, evaluation_module, name = EVALUATORS[package]
        try:
            return importlib.import_module(coco_module).COCO, getattr(importlib.import_module(evaluation_module), name)
        except ImportError as error:
            missing.append(f"{package} ({error})")
    raise InputError(
        f"COCO's average precision needs {' or '.join(missing)}. Install one: pip install faster-coco-eval, or pip "
        "install 'hrnet-fast[coco]'."
    )


def read_annotations(annotations: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of COCO's annotation file.

    Raises:
        InputError: it is no such file or mapping.
    """
    content: Any = annotations
    name = "annotations"
    if not isinstance(annotations, Mapping):
        path = check_path("annotations", annotations)
        name = str(path)
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: COCO's annotations cannot be read ({error}).") from error
    lacking = [
        key for key in ("images", "annotations", "categories") if not isinstance(content, Mapping) or key not in content
    ]
    if lacking:
        raise InputError(f"{name}: {', '.join(lacking)} missing; needed are COCO's images, annotations and categories.")
    return dict(content)


def index_annotations(coco: Any, content: Mapping[str, Any]) -> Any:
    """Return a COCO object with a copy of annotations, to which the evaluation adds keys, numbered from 1.

    In COCO's evaluation the id 0 means "no match": an annotation with that id would never count as found.
    """
    numbered = [annotation | {"id": i} for i, annotation in enumerate(content["annotations"], start=1)]
    coco.dataset = {**content, "annotations": numbered}
    coco.createIndex()
    return coco
