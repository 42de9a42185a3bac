"""Reading torch's two file formats without torch.load: what is rebuilt, what stays inert, what is refused."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_states import State, assert_equal_states, state_of
from tiny_networks import tiny
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.checkpoints.files import read_file
from hrnet_fast.checkpoints.inert import Inert, Name
from hrnet_fast.checkpoints.rebuilding import ALLOWED, STORAGES, Storage
from hrnet_fast.checkpoints.unpickling import Unpickler, unpickle


@pytest.fixture(scope="module")
def state() -> State:
    return state_of("pose")


class Own(Tensor):
    pass


def no_storage(identifier: Any) -> Any:
    raise AssertionError("no tensor is expected here")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], **options: Any) -> Path:
    """Rewrite a zip file with other members, all checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("where", ["data.pkl", "data/0", "data/17", "version", ".data/serialization_id"])
def test_a_member_with_a_wrong_checksum(where: str, state: State, tmp_path: Path) -> None:
    """torch.load compares none: it returns other numbers."""
    path = tmp_path / "net.pth"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"net/{where}")
        place = info.header_offset + 26
        content = bytearray(path.read_bytes())
        name, extra = struct.unpack("<HH", content[place : place + 4])
        content[place + 4 + name + extra + info.file_size - 1] ^= 1
    path.write_bytes(content)
    if where.startswith("data/"):
        assert any(not torch.equal(v, state[k]) for k, v in torch.load(path).items())
    with pytest.raises(hf.CheckpointError, match=rf"net\.pth: cannot be read \(Bad CRC-32 for file 'net/{where}'"):
        hf.load_checkpoint(path)


def test_files_written_without_checksums(state: State, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal_states(hf.load_checkpoint(tmp_path / "net.pth").state_dict(), state)


def drop(members: dict[str, bytes]) -> None:
    del members["net/data/3"]


def cut(members: dict[str, bytes]) -> None:
    members["net/data/3"] = members["net/data/3"][:-4]


def grow(members: dict[str, bytes]) -> None:
    members["net/data/3"] += bytes(4)


def add(members: dict[str, bytes]) -> None:
    members["net/data/9999"] = bytes(4)


def point_elsewhere(members: dict[str, bytes]) -> None:
    """A storage's name in the pickle becomes that of another of the same size."""
    pkl = members["net/data.pkl"]
    assert pkl.count(b"X\x01\x00\x00\x002") == 1
    members["net/data.pkl"] = pkl.replace(b"X\x01\x00\x00\x002", b"X\x01\x00\x00\x003")


def no_pickle(members: dict[str, bytes]) -> None:
    del members["net/data.pkl"]


def trailing(members: dict[str, bytes]) -> None:
    members["net/data.pkl"] += b"N."


def script(members: dict[str, bytes]) -> None:
    members["net/constants.pkl"] = b"\x80\x02)."


def order(members: dict[str, bytes]) -> None:
    members["net/byteorder"] = b"middle"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (drop, "no member net/data/3"),
        (cut, "member net/data/3 has another size"),
        (grow, "member net/data/3 has another size"),
        (add, "member net/data/9999, which no tensor uses"),
        (point_elsewhere, "which no tensor uses"),
        (no_pickle, r"no member data\.pkl"),
        (trailing, "bytes after the end of the pickle"),
        (script, r"a TorchScript archive; save the module's state_dict\(\)"),
        (order, "byte order middle"),
    ],
)
def test_altered_archives(change: Callable[[dict[str, bytes]], None], why: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(state, path)
    with pytest.raises(hf.CheckpointError, match=rf"net\.pth: cannot be read \(.*{why}"):
        hf.load_checkpoint(rewritten(path, change))


def test_packed_again(state: State, tmp_path: Path) -> None:
    """As unpacking and packing leaves it: loads, but for compressed members, which are refused by name."""
    path = tmp_path / "net.pth"
    torch.save(state, path)
    assert_equal_states(hf.load_checkpoint(rewritten(path, lambda m: None)).state_dict(), state)
    with pytest.raises(hf.CheckpointError, match=r"compressed members.*pack it uncompressed"):
        hf.load_checkpoint(rewritten(path, lambda m: None, compression=zipfile.ZIP_DEFLATED))


def test_big_endian_files(state: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(state, path)
    dtypes = {k: v.numpy().dtype for k, v in state.items()}

    def swap(members: dict[str, bytes]) -> None:
        members["net/byteorder"] = b"big"
        for i, dtype in enumerate(dtypes.values()):
            members[f"net/data/{i}"] = np.frombuffer(members[f"net/data/{i}"], dtype).byteswap().tobytes()

    assert_equal_states(hf.load_checkpoint(rewritten(path, swap)).state_dict(), state)


def test_older_files_must_end_where_they_end(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(hf.CheckpointError, match="bytes after the last storage"):
        hf.load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_of_torch_load(zipped: bool, tmp_path: Path) -> None:
    """Views, shared memory, every type, no elements, no dimensions, other layouts, parameters and subclasses."""

    whole = torch.arange(24.0).reshape(2, 3, 4)
    values: dict[str, Any] = {
        "whole": whole,
        "row": whole[1],
        "columns": whole[:, :, 1:3],
        "turned": whole.transpose(0, 2),
        "expanded": torch.ones(3, 1).expand(3, 5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": nn.Parameter(torch.randn(3)),
        "own": torch.randn(3).as_subclass(Own),
    }
    if zipped:  # types without a storage of their own, which torch itself cannot read back from the older format
        values |= {"float8": torch.randn(4).to(torch.float8_e4m3fn), "uint16": torch.arange(4).to(torch.uint16)}
    dtypes = set(STORAGES.values())
    values |= {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes}
    path = tmp_path / "net.pth"
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    ours, theirs = read_file(path), torch.load(path, weights_only=False)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert type(ours[key]) is Tensor
        plain = value.detach().as_subclass(Tensor)
        assert ours[key].dtype == plain.dtype
        assert ours[key].stride() == plain.stride()
        assert torch.equal(ours[key].double(), plain.double()) if key == "float8" else torch.equal(ours[key], plain)
    assert ours["row"].untyped_storage().data_ptr() == ours["whole"].untyped_storage().data_ptr()


def test_state_dicts_of_python_2(state: State, tmp_path: Path) -> None:
    """An OrderedDict was made of a list of pairs, and text was bytes."""
    content = b"\x80\x02ccollections\nOrderedDict\n](]U\x01aaK\x01a]U\x01baK\x02ae\x85R."
    assert unpickle(content, no_storage) == OrderedDict(a=1, b=2)
    assert unpickle(b"\x80\x02U\x02\xc3\xa9.", no_storage) == "é"
    assert unpickle(b"\x80\x02U\x01\xff.", no_storage) == "\udcff"


def test_objects_are_inert() -> None:
    class Thing:
        pass

    Thing.__qualname__ = "Thing"
    Thing.__module__ = "nowhere.to.be"
    content = b"cnowhere.to.be\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    thing = unpickle(content, no_storage)
    assert isinstance(thing, Inert)
    assert thing.kind == Name("nowhere.to.be", "Thing")
    assert thing.state == {"a": 1}
    assert repr(thing) == "nowhere.to.be.Thing"
    filled = unpickle(b"cx\nList\n)R(K\x01K\x02e.", no_storage)
    assert filled.elements == [1, 2]
    filled = unpickle(b"cx\nConfig\n)R(X\x01\x00\x00\x00aK\x02u.", no_storage)
    assert dict(filled) == {"a": 2}


def test_every_instruction_is_known() -> None:
    """Those not replaced push plain data or move what is on the stack; no new Python may add others unseen."""
    replaced = {code for code, f in Unpickler.dispatch.items() if f is not pickle._Unpickler.dispatch[code]}
    kept = (
        "PROTO FRAME PERSID BINPERSID NONE NEWFALSE NEWTRUE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE BINUNICODE8 "
        "SHORT_BINUNICODE TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT EMPTY_SET LIST INST OBJ GLOBAL "
        "STACK_GLOBAL EXT1 EXT2 EXT4 POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE MARK STOP "
        "NEXT_BUFFER READONLY_BUFFER"
    )
    codes = {getattr(pickle, name)[0] for name in kept.split()}
    assert codes.isdisjoint(replaced)
    assert codes | replaced == set(Unpickler.dispatch)


@pytest.mark.parametrize(
    "content",
    [
        b"cx\ny\n)R" + b"(Nt" * 3 + b"s.",
        b"}(K\x01K\x02K\x01K\x03u.",
        b"}\x8a\x40" + b"\x7f" * 64 + b"Ns.",
        b"K\x01)R.",
        b"K\x01}b.",
        b"K\x01K\x02a.",
        b"K\x01K\x02K\x03s.",
        b"\x8f(](e\x90.",
        b"\x82\x01.",
        b"\x97.",
        b"\xff.",
        b"N",
        b"",
        b"NN",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)K\x01tR.",
    ],
)
def test_pickles_that_contradict_themselves(content: bytes, tmp_path: Path, state: State) -> None:
    with pytest.raises(Exception, match=r".*"):
        unpickle(b"\x80\x02" + content, no_storage)
    path = tmp_path / "net.pth"
    torch.save(state, path)

    def change(members: dict[str, bytes]) -> None:
        members["net/data.pkl"] = b"\x80\x02" + content

    with pytest.raises(hf.CheckpointError):
        hf.load_checkpoint(rewritten(path, change))


@pytest.mark.parametrize(
    ("offset", "size", "stride", "fits"),
    [
        (0, (3, 4), (4, 1), True),
        (0, (4, 3), (1, 4), True),
        (8, (4,), (1,), True),
        (0, (3, 2), (4, 2), True),
        (0, (12, 5), (1, 0), True),
        (9, (4,), (1,), False),
        (0, (13,), (1,), False),
        (0, (3, 4), (3, 1), False),
        (0, (3, 4), (4, 0), False),
        (0, (12,), (0,), False),
        (0, (12, 1 << 40), (1, 0), False),
        (0, (1 << 40, 0), (1, 1), False),
        (0, (3, 4), (4,), False),
        (0, (-3, 4), (4, 1), False),
        (-1, (3,), (1,), False),
    ],
)
def test_tensors_lie_within_their_storage(offset: int, size: Any, stride: Any, fits: bool) -> None:
    source = torch.arange(12.0)
    storage = Storage(source.untyped_storage(), torch.float32, 12)
    rebuild = ALLOWED["torch._utils", "_rebuild_tensor_v2"].function
    if fits:
        assert torch.equal(rebuild(storage, offset, size, stride, False, None), source.as_strided(size, stride, offset))
    else:
        with pytest.raises(pickle.UnpicklingError):
            rebuild(storage, offset, size, stride, False, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, state: State) -> None:
    state = {k: v.clone() for k, v in state.items()}
    state["bn2.running_var"][0] = value
    state["final_layer.weight"].flatten()[1] = value
    loaded = hf.load_checkpoint(state)
    assert loaded.notes == ("NaN or infinite values in (2): bn2.running_var, final_layer.weight",)


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    model = tiny("v1")
    model._modules["again"] = model
    torch.save(model, tmp_path / "net.pth")
    with pytest.raises(hf.CheckpointError, match=r"pickled module .* contains itself"):
        hf.load_checkpoint(tmp_path / "net.pth")
