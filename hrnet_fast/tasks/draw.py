"""Drawing of predictions on RGB images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hrnet_fast.detection.results import Detections
from hrnet_fast.tasks.prediction import Options

Colour = tuple[int, int, int]


def palette(n: int) -> list[Colour]:
    """Return `n` RGB colours whose neighbours differ strongly (hues spaced by the golden ratio)."""
    hues = [(i * 0.618034) % 1.0 for i in range(n)]
    rgb = [colorsys.hsv_to_rgb(h, 0.75, 0.95 if i % 2 else 0.7) for i, h in enumerate(hues)]
    return [(int(r * 255), int(g * 255), int(b * 255)) for r, g, b in rgb]


def keypoints(
    image: Image.Image,
    people: Sequence[Sequence[Sequence[float]]],
    scores: Sequence[Sequence[float]],
    bones: Sequence[tuple[int, int]],
    options: Options,
) -> Image.Image:
    """Draw the points whose score reaches the threshold, and the bones between them."""
    picture = image.convert("RGB")  # a copy
    pen = ImageDraw.Draw(picture)
    radius = max(2, round(min(image.size) / 160))
    colours = palette(len(bones) or (len(people[0]) if people else 0))
    for points, values in zip(people, scores, strict=True):
        seen = [v >= options.threshold for v in values]
        for colour, (a, b) in zip(colours, bones, strict=False):
            if seen[a] and seen[b]:
                pen.line([tuple(points[a]), tuple(points[b])], fill=colour, width=radius)
        for i, (x, y) in enumerate(points):
            if seen[i]:
                fill = (255, 255, 255) if bones else colours[i]
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=(0, 0, 0))
    return picture


def errors(image: Image.Image, points: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> Image.Image:
    """Draw targets as rings, each with a line to the predicted point."""
    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    radius = max(4, round(min(image.size) / 80))
    colour = (40, 220, 60)
    for point, (x, y) in zip(points, targets, strict=True):
        pen.line([tuple(point), (x, y)], fill=colour)
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour, width=max(2, radius // 3))
    return picture


def overlay(image: Image.Image, labels: NDArray[np.integer], classes: int, opacity: float = 0.55) -> Image.Image:
    """Blend the colours of a label map [H, W] over the image."""
    colours = np.array(palette(classes), dtype=np.uint8)[labels]
    return Image.blend(image.convert("RGB"), Image.fromarray(colours), opacity)


def detections(image: Image.Image, found: Detections, names: Sequence[str], threshold: float) -> Image.Image:
    """Draw the boxes, masks and classes of the detections whose score reaches the threshold, the best on top."""
    colours = palette(len(names))
    rows = [i for i, score in enumerate(found.scores.tolist()) if score >= threshold][::-1]
    pixels = np.array(image.convert("RGB"))
    for i in rows:
        if found.masks is None:
            break
        inside = found.masks[i].cpu().numpy()
        pixels[inside] = (pixels[inside] * 0.5 + np.array(colours[int(found.labels[i])]) * 0.5).astype(np.uint8)
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(image.size) / 240))
    font = ImageFont.load_default(size=max(11, min(image.size) / 40))
    for i in rows:
        label = int(found.labels[i])
        box = found.boxes[i].tolist()
        text = f"{names[label]} {float(found.scores[i]):.2f}"
        pen.rectangle(box, outline=colours[label], width=line)
        background = pen.textbbox((box[0], box[1]), text, font=font)
        pen.rectangle(background, fill=colours[label])
        pen.text((box[0], box[1]), text, fill=(255, 255, 255), font=font)
    return picture


def captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Write lines of text under the image."""
    height = max(14, image.width // 28)
    font = ImageFont.load_default(size=height * 0.8)
    picture = Image.new("RGB", (image.width, image.height + height * (len(lines) + 1)), (255, 255, 255))
    picture.paste(image.convert("RGB"), (0, 0))
    pen = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        pen.text((height / 2, image.height + height * (i + 0.5)), line, fill=(20, 20, 20), font=font)
    return picture
