"""Checkpoint files: formats that are read, damage that is refused, and atomic writing."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from family_states import State, assert_equal_states, state_of
from tiny_networks import tiny

import hrnet_fast as hf
from hrnet_fast.checkpoints import files

SUFFIXES = (".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".safetensors")


@pytest.fixture(scope="module")
def state() -> State:
    return state_of("pose")


def write(value: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(value, path)
    else:
        torch.save(value, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads(suffix: str, state: State, tmp_path: Path) -> None:
    path = write(state, tmp_path / f"net{suffix}")
    for source in (path, str(path)):
        loaded = hf.load_checkpoint(source)
        assert loaded.family == "pose"
        assert_equal_states(loaded.state_dict(), state)


def test_suffixes_in_capitals(state: State, tmp_path: Path) -> None:
    assert hf.load_checkpoint(write(state, tmp_path / "NET.PTH")).family == "pose"


def test_reads_files_of_before_the_zip_format(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_equal_states(hf.load_checkpoint(path).state_dict(), state)


def test_reads_what_training_loops_leave_beside_the_weights(state: State, tmp_path: Path) -> None:
    training = {
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "epoch": 210,
        "best_nme": np.float64(0.0345),
        "best_perf": np.float32(0.7),
        "step": np.int64(12),
        "optimizer": {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
    }
    loaded = hf.load_checkpoint(write(training, tmp_path / "checkpoint.pth.tar"))
    assert_equal_states(loaded.state_dict(), state)


def test_parameters_are_read_as_tensors(tmp_path: Path) -> None:
    model = tiny("v1")
    path = write({**dict(model.named_parameters()), **dict(model.named_buffers())}, tmp_path / "net.pth")
    loaded = hf.load_checkpoint(path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


class Intruder:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_inert_and_never_run(zipped: bool, state: State, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pth"
    torch.save(state | {"extra": Intruder(trace)}, path, _use_new_zipfile_serialization=zipped)
    loaded = hf.load_checkpoint(path)
    assert not trace.exists()
    assert_equal_states(loaded.state_dict(), state)
    assert loaded.notes == ("ignored entries that are no tensors: extra",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated(kept: float, suffix: str, state: State, tmp_path: Path) -> None:
    path = write(state, tmp_path / f"net{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(hf.CheckpointError, match=r"net\..*cannot be read.*truncated or no checkpoint"):
        hf.load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [b"<html><body>404 Not Found</body></html>", b"hello", bytes(100), pickle.dumps([1])[:-1]],
    ids=["page", "word", "zeros", "cut"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_content(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(hf.CheckpointError, match="truncated or no checkpoint"):
        hf.load_checkpoint(path)


def test_old_format_truncated(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(hf.CheckpointError, match="truncated or no checkpoint"):
        hf.load_checkpoint(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(hf.CheckpointError, match=r"none\.pth: no such file"):
        hf.load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "file").write_bytes(b"")
    for name in ("no\0name.pth", "file/net.pth"):
        with pytest.raises(hf.CheckpointError, match="no such file"):
            hf.load_checkpoint(tmp_path / name)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(hf.CheckpointError, match=r"folder\.pth: no such file"):
        hf.load_checkpoint(tmp_path / "folder.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_may_not_be_read(
    suffix: str, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, no permission keeps a file from being read; hence the stand-in."""
    path = write(state, tmp_path / f"net{suffix}")

    def denied(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        hf.CheckpointError, match=r"cannot be opened \(Permission denied\)\. Make .* readable"
    ) as caught:
        hf.load_checkpoint(path)
    assert "truncated" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be another user for a while")
def test_a_folder_that_may_not_be_searched(state: State) -> None:
    """The real thing, as nobody. A folder of its own: pytest's may be closed to others already."""
    folder = Path(tempfile.mkdtemp())
    path = write(state, folder / "net.pth")
    folder.chmod(0o700)
    hf.save_checkpoint(hf.load_checkpoint(path).state_dict(), folder / "other.pth")  # imports what nobody may not
    try:
        os.seteuid(65534)
        for error, action in (
            ("cannot be opened", hf.load_checkpoint),
            ("cannot be written", lambda p: hf.save_checkpoint(state, p)),
        ):
            with pytest.raises(hf.CheckpointError, match=rf"{error} \(Permission denied\)"):
                action(path)
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_without_the_package_safetensors(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(state, tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for action in (hf.load_checkpoint, lambda p: hf.save_checkpoint(state, p, overwrite=True)):
        with pytest.raises(hf.CheckpointError, match=r"net\.safetensors: .*pip install safetensors") as caught:
            action(path)
        assert "truncated" not in str(caught.value)
    assert os.listdir(tmp_path) == [path.name]
    assert hf.load_checkpoint(write(state, tmp_path / "net.pth")).family == "pose"


@pytest.mark.parametrize("error", [RuntimeError(), OSError(), RuntimeError("\n")])
def test_errors_without_a_message(
    error: Exception, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(state, tmp_path / "net.pth")
    name = type(error).__name__

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(files, "read_torch_file", fail)
    with pytest.raises(hf.CheckpointError, match=rf"cannot be read \({name}\)"):
        hf.load_checkpoint(path)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(hf.CheckpointError, match=rf"cannot be written \({name}\)"):
        hf.save_checkpoint(state, path, overwrite=True)


@pytest.mark.parametrize("name", ["net.onnx", "net", "net.txt", "net.pth.zip"])
def test_unknown_suffix(name: str, state: State, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    for action in (hf.load_checkpoint, lambda p: hf.save_checkpoint(state, p, overwrite=True)):
        with pytest.raises(hf.CheckpointError, match=r"accepted are files ending in \.pth, .*\.safetensors"):
            action(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_writes_what_it_reads(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    hf.save_checkpoint(state, path)
    assert_equal_states(hf.load_checkpoint(path).state_dict(), state)
    assert os.listdir(tmp_path) == [path.name]
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_parameters_and_views_are_written(suffix: str, tmp_path: Path) -> None:
    model = tiny("v1").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = tmp_path / f"net{suffix}"
    hf.save_checkpoint(model.state_dict(keep_vars=True), path)
    loaded = hf.load_checkpoint(path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


def test_an_existing_file_is_kept(state: State, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"precious")
    with pytest.raises(hf.CheckpointError, match="exists already"):
        hf.save_checkpoint(state, path)
    assert path.read_bytes() == b"precious"
    hf.save_checkpoint(state, path, overwrite=True)
    assert_equal_states(hf.load_checkpoint(path).state_dict(), state)
    assert os.listdir(tmp_path) == ["net.pth"]


def test_missing_folder(state: State, tmp_path: Path) -> None:
    with pytest.raises(hf.CheckpointError, match="cannot be written"):
        hf.save_checkpoint(state, tmp_path / "none" / "net.pth")
    assert os.listdir(tmp_path) == []


def fail_while_writing(error: BaseException) -> Callable[..., None]:
    def save(_value: Any, handle: Any) -> None:
        handle.write(b"half a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), hf.CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("existing", [True, False])
def test_interrupted_writing(
    error: BaseException,
    raised: type[BaseException],
    existing: bool,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "net.pth"
    if existing:
        path.write_bytes(b"precious")
    monkeypatch.setattr(torch, "save", fail_while_writing(error))
    with pytest.raises(raised):
        hf.save_checkpoint(state, path, overwrite=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"precious"] if existing else [])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_room(suffix: str, state: State, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the same writes fail in the same places."""
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"precious")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(hf.CheckpointError, match="cannot be written"):
            hf.save_checkpoint(state, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"precious"


def test_tensors_that_share_memory_are_written(state: State, tmp_path: Path) -> None:
    shared = state | {"bn2.bias": state["bn1.bias"], "bn2.weight": state["bn1.weight"]}
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        hf.save_checkpoint(shared, path)
        assert_equal_states(hf.load_checkpoint(path).state_dict(), shared)


def test_a_quantised_file_is_refused() -> None:
    state = {k: v.to(torch.int8) if v.dim() == 4 else v for k, v in tiny("v1").state_dict().items()}
    with pytest.raises(hf.CheckpointError, match="no dense floating tensors"):
        hf.load_checkpoint(state)


def test_meta_tensors_are_refused() -> None:
    """They have shapes and no values: the network would be filled with whatever memory holds."""
    state = {k: v.to("meta") for k, v in tiny("v1").state_dict().items()}
    with pytest.raises(hf.CheckpointError, match="meta"):
        hf.load_checkpoint(state)


def test_two_keys_of_one_meaning_are_refused() -> None:
    state = hf.convert_checkpoint(tiny("v1").state_dict(), to="mmpose")
    with pytest.raises(hf.CheckpointError, match=r"map to final_layer\.weight"):
        hf.load_checkpoint(state | {"final_layer.weight": torch.zeros_like(state["head.final_layer.weight"])})
