"""Cuts single cells out of pictures with boxes (Pascal VOC's files), into a folder for each class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from hrnet_fast.errors import InputError

MARGIN = 0.1  # of a box, on each side
MOST_OF_A_CLASS = 4  # of one picture; most cells are red


def cut_cells(source: Path, output: Path) -> Counter[str]:
    """Write ``<train|val>/<class>/<picture>_<row>.png``; return how many each folder got.

    `source` has ``JPEGImages``, ``Annotations``, ``train.txt`` and ``val.txt``. Boxes of no area are left out.
    The first `MOST_OF_A_CLASS` of each picture and class are taken.

    Raises:
        InputError: a file is missing or broken, or `output` exists.
    """
    if output.exists():
        raise InputError(f"{output} exists; give a folder that does not.")
    counts: Counter[str] = Counter()
    for part in ("train", "val"):
        try:
            for name in (source / f"{part}.txt").read_text().split():
                counts += _cut(source, name, output / part)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise InputError(f"{source}: cells cannot be cut out of it ({error}).") from error
    return counts


def _cut(source: Path, name: str, output: Path) -> Counter[str]:
    taken: Counter[str] = Counter()
    with Image.open(source / "JPEGImages" / f"{name}.jpg") as opened:
        picture = opened.convert("RGB")
    for row, cell in enumerate(ElementTree.parse(source / "Annotations" / f"{name}.xml").iter("object")):
        label = cell.findtext("name", "")
        x1, y1, x2, y2 = (float(cell.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax"))
        if taken[label] == MOST_OF_A_CLASS or x1 >= x2 or y1 >= y2:
            continue
        taken[label] += 1
        x, y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
        box = (max(x1 - x, 0), max(y1 - y, 0), min(x2 + x, picture.width), min(y2 + y, picture.height))
        (output / label).mkdir(parents=True, exist_ok=True)
        picture.crop(tuple(round(v) for v in box)).save(output / label / f"{name}_{row}.png")  # type: ignore[arg-type]
    return Counter({f"{output.name}/{label}": n for label, n in taken.items()})
