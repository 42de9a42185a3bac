"""Hostile pickle instructions for ``fuzz_checkpoints.py``: some execute code, others claim memory."""

from __future__ import annotations

import struct
from pathlib import Path


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def payloads(canary: Path) -> list[bytes]:
    """Pickle instructions that run code in an ordinary unpickler and leave one object on the stack."""
    command = _text(f"touch {canary}")
    source = _text(f"open({str(canary)!r}, 'w')")
    inner = b"\x80\x02cos\nsystem\n" + command + b"\x85R."
    system = b"cos\nsystem\n"
    return [
        system + command + b"\x85R",
        b"cposix\nsystem\n" + command + b"\x85R",
        b"cbuiltins\neval\n" + source + b"\x85R",
        b"c__builtin__\nexec\n" + source + b"\x85R",
        b"(" + command + b"ios\nsystem\n",
        b"(" + system + command + b"o",
        b"csubprocess\nPopen\n" + _text("touch") + _text(str(canary)) + b"\x86\x85\x81",
        b"csubprocess\nPopen\n" + _text("touch") + _text(str(canary)) + b"\x86\x85}\x92",
        b"cbuiltins\ngetattr\ncos\nsystem\n" + _text("__call__") + b"\x86R" + command + b"\x85R",
        b"cfunctools\npartial\n" + system + command + b"\x86R)R",
        _text("os") + _text("system") + b"\x93" + command + b"\x85R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + system + b"N" + command + b"\x85NtR",
        b"ctorch.storage\n_load_from_bytes\nC" + bytes([len(inner)]) + inner + b"\x85R",
        b"cpickle\nloads\nC" + bytes([len(inner)]) + inner + b"\x85R",
        b"cpathlib\nPath\n" + _text(str(canary)) + b"\x85Rcpathlib\nPath.touch\nq\xff0h\xff\x85R",
        b"ccollections\nOrderedDict\n)R}" + _text("__class__") + system + b"sb",
        b"c__main__\nLayer\n)\x81}" + _text("__setstate__") + system + b"sb" + command + b"b",
        b"\x82\x01",
        b"cimportlib\nimport_module\n" + _text("this") + b"\x85R",
        b"ctorch\nload\n" + _text(str(canary)) + b"\x85R",
        b"cos\nremove\n" + _text(str(canary)) + b"\x85R",
    ]


def bombs() -> list[bytes]:
    """Pickle instructions that claim much memory, nest deeply or never end."""
    deep = 200_000
    return [
        b"\x96" + struct.pack("<Q", 1 << 40),
        b"\x8e" + struct.pack("<Q", 1 << 40),
        b"\x8d" + struct.pack("<Q", (1 << 63) - 1),
        b"\x95" + struct.pack("<Q", 1 << 45),
        b"Nr\xff\xff\xff\x7f",
        b"(" * deep + b"N1",
        b"]" * deep + b"a" * (deep - 1),
        b"N" + b"\x85" * deep,
        b"}N" + b"\x85" * deep + b"Ns",
        b"\x8f(N" + b"\x85" * deep + b"\x90",
        b"cbuiltins\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x00\x85R",
        b"cbuiltins\nbytes\n\x8a\x06\xff\xff\xff\xff\xff\x00\x85R",
        b"cbuiltins\nset\ncbuiltins\nrange\n\x8a\x06\xff\xff\xff\xff\xff\x00\x85R\x85R",
        b"cx\ny\n" + b")R" * deep,
        b"]q\xfe" + b"h\xfea" * 1000,
        b"}q\xfeNh\xfesccollections\nOrderedDict\n)R}" + _text("a") + b"h\xfesb",
        b"cx\nModule\n)R}("
        + b"".join(_text(k) + b"}" for k in ("_parameters", "_buffers"))
        + _text("_modules")
        + b"}ub",
        b"\x8a\xff" + b"\xff" * 255,
        b"L" + b"9" * 100_000 + b"L\n",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00zX\x03\x00\x00\x00cpu\x8a\x06\xff\xff\xff\xff\xff\x00tQ",
    ]
