"""Engines in files and as plain modules: without the model, the same answers; and nothing else is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import image, maps, relative_l2, tiny, two_stages
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.inference import engine_file
from hrnet_fast.inference.execution import cpu_executor
from hrnet_fast.inference.steps import CallStep

native = pytest.mark.skipif(not cpu_executor.available(), reason="the compiled extension is not there")
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=native), torch.float64], ids=str
)


def equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and all(torch.equal(x, y) for x, y in zip(maps(a), maps(b), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "dtype"),
    [
        ("v1", torch.float32),
        ("c", torch.float64),
        ("ocr", torch.float32),
        pytest.param("v1", torch.bfloat16, marks=native),
        pytest.param("v2p", torch.bfloat16, marks=native),
    ],
    ids=str,
)
def test_saved_and_loaded(head: str, dtype: torch.dtype, tmp_path: Path) -> None:
    engine = hf.optimize_for_inference(two_stages(head), image(64, 64), dtype=dtype)
    engine.save(tmp_path / "engine.pt", shapes=[(2, 3, 64, 96)])
    torch.load(tmp_path / "engine.pt", weights_only=True)
    loaded = hf.Engine.load(tmp_path / "engine.pt")
    assert (loaded.dtype, loaded.device) == (dtype, torch.device("cpu"))
    for x in (image(64, 64), image(64, 96, batch=2)):
        assert equal(loaded(x), engine(x))
    before = loaded(image(64, 64))
    with pytest.raises(InputError, match=r"\[1, 3, 32, 32\].*\[1, 3, 64, 64\], \[2, 3, 64, 96\].*save"):
        loaded(image(32, 32))
    with pytest.raises(InputError, match="no model"):
        loaded.refresh()
    assert equal(loaded(image(64, 64)), before)
    loaded.save(tmp_path / "again.pt")
    assert equal(hf.Engine.load(tmp_path / "again.pt")(image(64, 64)), before)


def test_normalisation_is_saved(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    engine = hf.optimize_for_inference(tiny(), images, normalize=((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    engine.save(tmp_path / "engine.pt")
    assert equal(hf.Engine.load(tmp_path / "engine.pt")(images), engine(images))


def test_more_shapes_than_stay_prepared(tmp_path: Path) -> None:
    engine = hf.optimize_for_inference(two_stages(), image(32, 32), max_shapes=1)
    engine.save(tmp_path / "engine.pt", shapes=[(1, 3, 64, 64), (1, 3, 32, 64)])
    loaded = hf.Engine.load(tmp_path / "engine.pt")
    for size in ((64, 64), (32, 32), (32, 64), (64, 64)):
        assert equal(loaded(image(*size)), engine(image(*size)))


def test_changed_weights_are_not_saved(tmp_path: Path) -> None:
    model = two_stages()
    engine = hf.optimize_for_inference(model, image(32, 32))
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    with pytest.raises(InputError, match="refresh"):
        engine.save(tmp_path / "engine.pt")
    assert not list(tmp_path.iterdir())


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = hf.optimize_for_inference(two_stages(), image(32, 32))
    engine.save(tmp_path / "engine.pt")
    before = (tmp_path / "engine.pt").read_bytes()
    whole = torch.save

    def broken(content: Any, path: Any) -> None:
        whole(content, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        engine.save(tmp_path / "engine.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["engine.pt"]
    assert (tmp_path / "engine.pt").read_bytes() == before


def assert_refused(path: Path) -> str:
    with pytest.raises(InputError, match=r"Engine\.load") as raised:
        hf.Engine.load(path)
    said = str(raised.value)
    assert "\n" not in said
    assert path.name in said
    return said


def test_files_that_are_none(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.pt")
    engine = hf.optimize_for_inference(two_stages(), image(32, 32))
    engine.save(tmp_path / "engine.pt")
    content = (tmp_path / "engine.pt").read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "part.pt").write_bytes(content[:kept])
        assert_refused(tmp_path / "part.pt")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n" + bytes(100))
    assert_refused(tmp_path / "picture.png")
    torch.save(two_stages().state_dict(), tmp_path / "checkpoint.pth")
    assert "load_checkpoint" in assert_refused(tmp_path / "checkpoint.pth")
    torch.save([1, 2], tmp_path / "list.pt")
    assert_refused(tmp_path / "list.pt")
    torch.save(Path("a pickled object"), tmp_path / "object.pt")
    assert_refused(tmp_path / "object.pt")


def tampered(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Rewrite a saved engine with its content changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def call_of(content: dict[str, Any]) -> dict[str, Any]:
    """The first call of the first plan, as it stands in the file."""
    steps = content["plans"][0]["fields"]["steps"]["items"]
    found: dict[str, Any] = next(s["fields"] for s in steps if s["kind"] == "CallStep")
    return found


FORBIDDEN = [
    {"kind": "function", "name": "torch.load"},
    {"kind": "function", "name": "torch.hub.load"},
    {"kind": "function", "name": "os.system"},
    {"kind": "dtype", "name": "load"},
    {"kind": "dtype", "name": "compile"},
    {"kind": "eval", "name": "print()"},
    "torch.load",
]


@pytest.mark.slow
def test_functions_that_no_file_may_name(tmp_path: Path) -> None:
    hf.optimize_for_inference(two_stages("c"), image(32, 32)).save(tmp_path / "engine.pt")
    for function in FORBIDDEN:
        assert_refused(tampered(tmp_path / "engine.pt", lambda c, f=function: call_of(c).update(function=f)))


@pytest.mark.parametrize("name", ["plans", "tensors", "settings"])
def test_files_that_lack_a_part(name: str, tmp_path: Path) -> None:
    hf.optimize_for_inference(two_stages(), image(32, 32)).save(tmp_path / "engine.pt")
    assert_refused(tampered(tmp_path / "engine.pt", lambda c: c.pop(name)))


def test_another_format(tmp_path: Path) -> None:
    hf.optimize_for_inference(two_stages(), image(32, 32)).save(tmp_path / "engine.pt")
    said = assert_refused(tampered(tmp_path / "engine.pt", lambda c: c.update(hrnet_fast_engine=99)))
    assert "99" in said


@pytest.mark.slow
def test_what_cannot_be_written(tmp_path: Path) -> None:
    engine = hf.optimize_for_inference(two_stages("c"), image(32, 32))
    plan = engine.plan()
    step = next(s for s in plan.steps if isinstance(s, CallStep))
    object.__setattr__(step, "function", lambda x: x)
    with pytest.raises(InputError, match="cannot be written"):
        engine.save(tmp_path / "engine.pt")
    assert not list(tmp_path.iterdir())


def test_functions_of_files_read_no_files() -> None:
    names = set(engine_file._functions())
    assert "torch.nn.functional.linear" in names
    words = ("load", "save", "from_file", "open", "compile", "exec", "eval", "system", "import")
    assert not [name for name in names if name.rsplit(".")[-1].startswith(words)]


@pytest.mark.traced
@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("head", ["v1", "c"])
def test_folded(head: str, dtype: torch.dtype) -> None:
    model, x = two_stages(head), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    folded = engine.folded()
    with torch.no_grad():
        given, plain = folded(x), model(x)
    assert relative_l2(given, plain) < (0.05 if dtype == torch.bfloat16 else 1e-5)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)  # it has weights of its own
        assert equal(folded(x), given)


@pytest.mark.compile
def test_export() -> None:
    engine = hf.optimize_for_inference(two_stages(), image(32, 32))
    program = engine.export()
    with torch.no_grad():
        assert equal(program.module()(image(32, 32)), engine.folded()(image(32, 32)))
    assert relative_l2(program.module()(image(32, 32)), engine(image(32, 32))) < 1e-5


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))), reason="onnx is not installed")
def test_export_onnx(tmp_path: Path) -> None:
    engine = hf.optimize_for_inference(two_stages(), image(32, 32))
    engine.export_onnx(tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    x: Tensor = image(32, 32)
    (given,) = session.run(None, {"image": x.numpy()})
    assert relative_l2(torch.from_numpy(given), engine(x)) < 1e-5
