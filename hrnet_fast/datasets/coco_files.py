"""Files in COCO's format: pictures, categories and annotations, with one kind of error for what is malformed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hrnet_fast.datasets.reading import fail, read_json
from hrnet_fast.errors import DatasetError, shown

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
Row = TypeVar("Row")


def read_coco(source: Path) -> dict[str, Any]:
    """Return the content of an annotation file; it has the lists ``images``, ``categories`` and ``annotations``.

    Raises:
        DatasetError: it has no pictures or categories, or something else than a list in place of the annotations.
    """
    content = read_json(source)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise fail(source, "", "no COCO annotations", 'a JSON object with the lists "images" and "categories"')
    return {**content, "annotations": a_list(source, content.get("annotations", []))}


def a_list(source: Path, items: Any, what: str = "annotations") -> list[Any]:
    """Return `items`.

    Raises:
        DatasetError: they are no list.
    """
    if not isinstance(items, list):
        raise fail(source, "", f"{type(items).__name__} in place of {what}", "a list")
    return items


def entry_name(item: Any, number: int) -> str:
    """Return what an annotation is called in messages: its id, or its place in the list."""
    return f"id {item['id']}" if isinstance(item, dict) and "id" in item else f"entry {number}"


def rows_of(
    source: Path,
    items: Iterable[Any],
    convert: Callable[[Any, str], Row | None],
    called: Callable[[Any, int], str] = entry_name,
) -> list[Row | DatasetError]:
    """Return the rows that `convert` makes, or the error of each; it returns None for what is no row.

    Args:
        source: the file.
        items: entries of one of its lists.
        convert: takes an entry and its name for messages; may raise :data:`MALFORMED` or DatasetError.
        called: returns that name of an entry and its number.
    """
    rows: list[Row | DatasetError] = []
    for number, item in enumerate(items):
        name = called(item, number)
        try:
            row = convert(item, name)
        except DatasetError as error:
            rows.append(error)
        except MALFORMED as error:
            rows.append(malformed(source, name, error))
        else:
            rows.extend([] if row is None else [row])
    return rows


def malformed(source: Path, name: str, error: Exception) -> DatasetError:
    """Return the error for an entry that is not as COCO's format has it."""
    reason = f"a malformed annotation ({type(error).__name__}: {str(error)[:80]})"
    return fail(source, name, reason, "an annotation in COCO's format")


def integer_id(source: Path, place: str, entry: Any) -> int:
    """Return the id of a picture or category, which results and evaluations have as an integer.

    Raises:
        DatasetError: there is none, or it is no integer of 64 bits.
    """
    if not isinstance(entry, dict) or "id" not in entry:
        raise fail(source, place, f"{shown(entry)} without an id", "a JSON object with an integer id")
    number = entry["id"]
    whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    if not whole or isinstance(number, bool) or abs(number) >= 2**63:
        raise fail(source, place, f"id {shown(number)}", "an integer id, without quotation marks in the file")
    return int(number)


def pictures_by_id(source: Path, images: list[Any]) -> tuple[dict[int, Any], list[DatasetError]]:
    """Return the pictures by their ids, and the errors of those without one."""
    pictures: dict[int, Any] = {}
    errors: list[DatasetError] = []
    for number, picture in enumerate(images):
        try:
            pictures[integer_id(source, f"image {number} of the list", picture)] = picture
        except DatasetError as error:
            errors.append(error)
    return pictures, errors


def picture_of(source: Path, pictures: dict[int, Any], item: Any, name: str) -> dict[str, Any]:
    """Return the picture of an annotation called `name`.

    Raises:
        DatasetError: there is none.
    """
    if item["image_id"] not in pictures:
        raise fail(source, name, f"image_id {shown(item['image_id'])}", 'an id of "images"')
    return dict(pictures[item["image_id"]])


def is_crowd(source: Path, item: Any, name: str) -> bool:
    """Return whether an annotation called `name` is of a crowd.

    Raises:
        DatasetError: ``iscrowd`` is neither 0 nor 1.
    """
    crowd = item.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise fail(source, name, f"iscrowd {shown(crowd)}", "0 or 1")
    return bool(crowd)
