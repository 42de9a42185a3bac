"""Parsers of option values: sizes, boxes and shares."""

from __future__ import annotations

import math
import re

import click

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


def parse_share(text: str) -> float:
    """Return "5%" or "0.05" as 0.05.

    Raises:
        click.BadParameter: `text` has another form or is not in [0, 1).
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise click.BadParameter(f"{text!r} is no share below one; give one such as 5% or 0.05.")
    return share
