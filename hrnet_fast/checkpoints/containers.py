"""The two formats of ``torch.save``: a zip archive (since torch 1.6), and the stream of pickles before it."""

from __future__ import annotations

import ctypes
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hrnet_fast.checkpoints.inert import Name, refuse
from hrnet_fast.checkpoints.rebuilding import Storage, StorageType
from hrnet_fast.checkpoints.unpickling import Unpickler, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_CHUNK = 1 << 20


def read_torch_file(path: Path) -> Any:
    """Return the object that ``torch.save`` wrote, with tensors on the CPU and other objects inert.

    Each member of a zip archive is compared with its checksum while it is read; the older format has none.

    Raises:
        Exception: of any kind, if the file is broken or no checkpoint.
    """
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        file.seek(0)
        return _Archive(file).load() if zipped else _Stream(file).load()


def _reserve(nbytes: int) -> torch.UntypedStorage:
    return torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]


def _view(storage: torch.UntypedStorage) -> memoryview:
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


def _storage_arguments(identifier: Any, count: int) -> tuple[Any, ...]:
    """The fields of a persistent identifier: type, key, location, number of elements."""
    if not isinstance(identifier, tuple) or len(identifier) != count or identifier[0] != "storage":
        refuse("a reference to no storage")
    kind, key, _, numel = identifier[1:5]
    if not isinstance(kind, StorageType) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        refuse("a reference to a storage without type, key or size")
    return kind.dtype, key, numel, *identifier[5:]


class _Archive:
    """A zip archive: ``data.pkl``, one member ``data/KEY`` for each storage, and a few small ones."""

    def __init__(self, file: BinaryIO) -> None:
        self.zip = zipfile.ZipFile(file)
        members = [m for m in self.zip.infolist() if not m.is_dir()]
        self.members = {m.filename: m for m in members}
        size = file.seek(0, 2)
        if len(self.members) != len(members):
            refuse("two members of one name")
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            refuse("compressed members, which torch.save does not write; unpack it and pack it uncompressed")
        if sum(m.file_size for m in members) > size:
            refuse("members that overlap")
        pickles = [name for name in self.members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            refuse("no member data.pkl")
        self.root = pickles[0].removesuffix("data.pkl")
        # torch.serialization.set_crc32_options(False) writes zeros for all checksums.
        if all(m.CRC == 0 for m in members):
            for member in members:
                del member.CRC  # read without comparison
        self.unread = set(self.members)
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        if f"{self.root}constants.pkl" in self.members:
            refuse("a TorchScript archive; save the module's state_dict() with torch.save, and load that")
        order = self._read(f"{self.root}byteorder").decode() if f"{self.root}byteorder" in self.members else "little"
        if order not in ("little", "big"):
            refuse(f"byte order {order}")
        self.swapped = order != sys.byteorder
        value = unpickle(self._read(f"{self.root}data.pkl"), self._storage)
        for name in sorted(self.unread):
            if name.startswith(f"{self.root}data/"):
                refuse(f"member {name}, which no tensor uses")
            self._read(name)
        return value

    def _read(self, name: str) -> bytes:
        self.unread.discard(name)
        with self.zip.open(self.members[name]) as member:
            return member.read()

    def _storage(self, identifier: Any) -> Storage:
        dtype, key, numel = _storage_arguments(identifier, 5)
        nbytes = numel * dtype.itemsize
        known = self.storages.get(key)
        if known is not None:
            if known.numel * known.dtype.itemsize != nbytes:
                refuse(f"two sizes of storage {key}")
            return Storage(known.untyped, dtype, numel)
        name = f"{self.root}data/{key}"
        if name not in self.members:
            refuse(f"no member {name}")
        if self.members[name].file_size != nbytes:
            refuse(f"member {name} has another size than its storage")
        self.unread.discard(name)
        untyped = _reserve(nbytes)
        with self.zip.open(self.members[name]) as member:
            _fill(untyped, member)
            if member.read(1):
                refuse(f"member {name} is longer than its storage")
        if self.swapped:
            untyped.byteswap(dtype)  # type: ignore[no-untyped-call]
        self.storages[key] = Storage(untyped, dtype, numel)
        return self.storages[key]


def _fill(storage: torch.UntypedStorage, source: Any) -> None:
    if storage.nbytes() == 0:
        return
    view, done = _view(storage), 0
    while done < len(view):
        count = source.readinto(view[done : done + _CHUNK])
        if not count:
            refuse("content that is cut short")
        done += count


class _Bounded:
    """A file whose reads reserve at most the bytes that the file has, whatever length is requested."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.readline = file.readline
        self.size = file.seek(0, 2)
        file.seek(0)

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size) if count < _CHUNK else min(count, self.size - self.file.tell()))


class _Stream:
    """The format before torch 1.6: five pickles, then each storage as its number of elements and its content."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bounded = _Bounded(file)
        self.storages: dict[str, Storage] = {}
        self.total = 0

    def load(self) -> Any:
        if self._pickle() != _MAGIC:
            refuse("no file of torch.save")
        if self._pickle() != _PROTOCOL:
            refuse("a protocol of torch.save that does not exist")
        self._pickle()  # sizes and byte order of the machine that wrote it; the content is little-endian on all
        value = self._pickle()
        keys = self._pickle()
        if not isinstance(keys, list) or len(keys) != len(self.storages) or set(keys) != set(self.storages):
            refuse("a list of storages that are not the tensors'")
        for key in keys:
            storage = self.storages[key]
            (numel,) = struct.unpack("<q", self.file.read(8))
            if numel != storage.numel:
                refuse(f"another size than storage {key} has")
            _fill(storage.untyped, self.file)
            if sys.byteorder == "big":
                storage.untyped.byteswap(storage.dtype)  # type: ignore[no-untyped-call]
        if self.file.read(1):
            refuse("bytes after the last storage")
        return value

    def _pickle(self) -> Any:
        return Unpickler(self.bounded, self._persistent).load()

    def _persistent(self, identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            if not isinstance(identifier[1], Name):
                refuse("a module without a class")
            return identifier[1]  # a class, followed by its source text
        dtype, key, numel, view = _storage_arguments(identifier, 6)
        if key not in self.storages:
            self.total += numel * dtype.itemsize
            if self.total > self.bounded.size:
                refuse("storages that are larger than the file")
            self.storages[key] = Storage(_reserve(numel * dtype.itemsize), dtype, numel)
        known = self.storages[key]
        if known.numel != numel or known.dtype != dtype:
            refuse(f"two sizes of storage {key}")
        return known if view is None else self._part(known, view)

    @staticmethod
    def _part(whole: Storage, view: Any) -> Storage:
        if not isinstance(view, tuple) or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
            refuse("a part of a storage without place")
        _, offset, numel = view
        if offset + numel > whole.numel:
            refuse("a part beyond its storage")
        return Storage(whole.untyped, whole.dtype, numel, offset * whole.dtype.itemsize)
