"""Mutations of checkpoints for ``fuzz_checkpoints.py``: of bytes, zip members, pickles, keys and shapes."""

from __future__ import annotations

import copy
import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_samples import Sample, legacy_layout, written
from hostile_pickles import bombs, payloads
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A damaged file.

    Attributes:
        content: of the file.
        what: what was done to it, for people.
        repaired: the file with those tensors' bytes as they were that no checksum covers; None where none were changed.
    """

    content: bytes
    what: str
    repaired: bytes | None = None


def flip_bytes(sample: Sample, rng: random.Random, canary: Path) -> Case:
    content = bytearray(sample.content)
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    # Half of the mutations are in headers and pickles, which are few of a file's bytes.
    if rng.random() < 0.5:
        edge = min(2000, len(content))
        places = [rng.choice((p % edge, len(content) - 1 - p % edge)) for p in places]
    for place in places:
        content[place] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    return Case(bytes(content), f"bytes {sorted(places)} flipped", _repaired(sample, content))


def overwrite(sample: Sample, rng: random.Random, canary: Path) -> Case:
    content = bytearray(sample.content)
    start = rng.randrange(len(content))
    length = min(rng.choice((1, 16, 512, 4096)), len(content) - start)
    filler = rng.choice((bytes(length), rng.randbytes(length), bytes([255]) * length))
    content[start : start + length] = filler
    return Case(bytes(content), f"{length} bytes at {start} overwritten", _repaired(sample, content))


def cut_bytes(sample: Sample, rng: random.Random, canary: Path) -> Case:
    content = sample.content
    start = rng.randrange(len(content))
    length = rng.choice((1, 7, 64, len(content)))
    kept = content[:start] + content[start + length :]
    if rng.random() < 0.3:
        kept = content[:start] + rng.randbytes(min(length, 64)) + content[start:]
    return Case(kept, f"{length} bytes at {start} cut or put in")


def _repaired(sample: Sample, content: bytes | bytearray) -> bytes | None:
    if sample.start is None:
        return None
    before, out, place = sample.content, bytearray(content), sample.start
    if sample.kind == "safetensors":
        out[place:] = before[place:]
    for nbytes in legacy_layout(before)[1] if sample.kind == "legacy" else ():
        place += 8  # the number of elements, which is compared
        out[place : place + nbytes] = before[place : place + nbytes]
        place += nbytes
    return None if out == content else bytes(out)


def rewrite(content: bytes, change: Callable[[dict[str, bytes]], None], twice: str = "") -> bytes:
    """Return a zip file with its members changed, all checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of two members of one name
        for name, data in members.items():
            archive.writestr(name, data)
        if twice:
            archive.writestr(twice, members[twice])
    return stream.getvalue()


def cut_members(sample: Sample, rng: random.Random, canary: Path) -> Case:
    with zipfile.ZipFile(io.BytesIO(sample.content)) as archive:
        name = rng.choice(archive.namelist())
    how = rng.choice(("dropped", "cut", "grown", "emptied", "renamed", "doubled"))

    def change(members: dict[str, bytes]) -> None:
        data = members.pop(name) if how in ("dropped", "renamed") else members[name]
        if how == "cut":
            members[name] = data[: rng.randrange(len(data) + 1)]
        if how == "grown":
            members[name] = data + rng.randbytes(rng.choice((1, 4, 64)))
        if how == "emptied":
            members[name] = b""
        if how == "renamed":
            members[name + rng.choice(("0", "x", "/a"))] = data

    return Case(rewrite(sample.content, change, name if how == "doubled" else ""), f"member {name} {how}")


def _with_pickle(sample: Sample, change: Callable[[bytes], bytes]) -> bytes:
    """Change the pickle of a file, its checksum made right."""
    if sample.kind == "zip":

        def change_member(members: dict[str, bytes]) -> None:
            name = next(n for n in members if n.endswith("/data.pkl"))
            members[name] = change(members[name])

        return rewrite(sample.content, change_member)
    start = sample.start or 0
    return change(sample.content[:start]) + sample.content[start:]


def alter_pickle(sample: Sample, rng: random.Random, canary: Path) -> Case:
    done: list[str] = []

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        place = rng.randrange(len(data))
        how = rng.choice(("flip", "flip", "flip", "byte", "cut", "copy", "number"))
        if how == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif how == "byte":
            data[place] = rng.choice(b".()[]{}abcdehijlopqrstuKMJGXUVR\x80\x81\x85\x86\x87\x88\x89\x8a\x93\x94\x95\x96")
        elif how == "cut":
            del data[place : place + rng.choice((1, 2, 8, 100))]
        elif how == "copy":
            data[place:place] = data[place : place + rng.choice((1, 2, 8, 100))]
        else:  # a number that the pickle holds: sizes, strides, offsets, references
            numbers = [i for i, byte in enumerate(data[:-1]) if byte in b"Khq"]
            data[rng.choice(numbers) + 1] = rng.randrange(256)
        done.append(f"{how} at {place}")
        return bytes(data)

    return Case(_with_pickle(sample, change), f"pickle altered: {done[-1] if done else 'header'}")


def _mappings(value: Any, depth: int = 0) -> list[dict[str, Any]]:
    """Every dictionary by name in what was saved, but those of a module's class."""
    if isinstance(value, nn.Module):
        return [m for part in value.modules() for m in (part._parameters, part._buffers, part._modules) if m]
    found = [value] if isinstance(value, dict) and value else []
    inside = value.values() if isinstance(value, Mapping) and depth < 3 else ()
    return found + [m for v in inside for m in _mappings(v, depth + 1)]


def _resaved(sample: Sample, change: Callable[[Any], str]) -> Case:
    value = copy.deepcopy(sample.value)
    what = change(value)
    return Case(written(value, sample.kind), what)


def rename_keys(sample: Sample, rng: random.Random, canary: Path) -> Case:
    def change(value: Any) -> str:
        mapping = rng.choice(_mappings(value))
        old = rng.choice(list(mapping))
        if not isinstance(old, str):
            return "nothing renamed"
        at = rng.randrange(len(old) + 1)
        new = rng.choice(
            (
                old[:at] + "x" + old[at:],
                old[:at] + old[at + 1 :],
                "module." + old,
                "ema_" + old,
                old.upper(),
                "loss." + old,
            )
        )
        if rng.random() < 0.2:
            new = rng.choice([str(k) for k in mapping])  # two keys with one name: one entry is lost
        items = [(new if k == old else k, v) for k, v in mapping.items()]
        mapping.clear()
        mapping.update(items)
        return f"{old} renamed {new}"

    return _resaved(sample, change)


def _tensors(value: Any) -> list[tuple[dict[str, Any], str]]:
    return [(m, k) for m in _mappings(value) for k, v in m.items() if isinstance(v, Tensor)]


def change_shapes(sample: Sample, rng: random.Random, canary: Path) -> Case:
    def change(value: Any) -> str:
        mapping, key = rng.choice(_tensors(value))
        tensor = mapping[key].detach()
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda t: t[None],
            lambda t: t.flatten() if t.dim() > 1 else t.reshape(*t.shape, 1),
            lambda t: torch.cat([t, t]) if t.dim() else t[None],
            lambda t: t[: max(0, len(t) - 1)].clone() if t.dim() else t[None],
            lambda t: t.transpose(0, 1).contiguous() if t.dim() > 1 and t.shape[0] != t.shape[1] else t[None],
            lambda t: t.to(torch.int8) if t.is_floating_point() else t[None],
            lambda t: t.new_empty(0),
        ]
        changed = rng.choice(changes)(tensor).contiguous()
        if isinstance(mapping[key], nn.Parameter):
            changed = nn.Parameter(changed, requires_grad=False)
        mapping[key] = changed
        return f"{key}: {list(tensor.shape)} made {list(changed.shape)} {changed.dtype}"

    return _resaved(sample, change)


def put_in(sample: Sample, instructions: bytes) -> bytes:
    """Have the unpickler execute something first, and drop what it leaves."""

    def change(content: bytes) -> bytes:
        if sample.kind == "zip":
            return content[:2] + instructions + b"0" + content[2:]
        place = content.index(b"\x80\x02", content.index(b"little_endian"))
        return content[:place] + b"\x80\x02" + instructions + b"0" + content[place + 2 :]

    return _with_pickle(sample, change)


def run_payloads(sample: Sample, rng: random.Random, canary: Path) -> Case:
    if sample.kind == "safetensors":  # a pickle under that name
        return Case(b"\x80\x02" + rng.choice(payloads(canary)) + b".", "a pickle in place of safetensors")
    number = rng.randrange(len(payloads(canary)))
    return Case(put_in(sample, payloads(canary)[number]), f"payload {number}")


def claim_memory(sample: Sample, rng: random.Random, canary: Path) -> Case:
    if sample.kind == "safetensors":
        size = rng.choice((1 << 20, 1 << 40, (1 << 64) - 1))
        return Case(struct.pack("<Q", size) + sample.content[8:], f"a header of {size} bytes claimed")
    number = rng.randrange(len(bombs()))
    return Case(put_in(sample, bombs()[number]), f"bomb {number}")


MUTATIONS: dict[str, tuple[Callable[[Sample, random.Random, Path], Case], int]] = {
    "bytes flipped": (flip_bytes, 25),
    "bytes overwritten": (overwrite, 10),
    "bytes cut or put in": (cut_bytes, 8),
    "members cut or renamed": (cut_members, 10),
    "pickles altered": (alter_pickle, 22),
    "keys renamed": (rename_keys, 9),
    "shapes changed": (change_shapes, 8),
    "pickles that run code": (run_payloads, 5),
    "pickles that claim memory": (claim_memory, 3),
}
