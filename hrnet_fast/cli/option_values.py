"""Parsers of option values: sizes, boxes and shares."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hrnet_fast.keypoints import Box


def parse_size(text: str) -> tuple[int, int]:
    """Return (H, W) of ``HxW``.

    Raises:
        click.BadParameter: `text` has another form.
    """
    match = re.fullmatch(r"(\d+)[x,](\d+)", text.strip())
    if not match or not all(1 <= int(side) <= 65536 for side in match.groups()):
        raise click.BadParameter(f"{text!r} is no size; give height and width as HxW, such as 256x192.")
    return int(match[1]), int(match[2])


def parse_box(text: str) -> Box:
    """Return (left, top, width, height) of four comma-separated numbers.

    Raises:
        click.BadParameter: `text` has another form.
    """
    try:
        left, top, width, height = (float(v) for v in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no box; give left,top,width,height in pixels.") from None
    if not all(map(math.isfinite, (left, top, width, height))):
        raise click.BadParameter(f"{text!r} is no box; left,top,width,height must be finite.")
    return left, top, width, height
