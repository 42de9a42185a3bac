"""Exports with a free batch and a free size: equal to the model at shapes they were not made at, or refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import enliven, image, maps, relative_l2, tiny, two_stages
from torch import Tensor, nn

import hrnet_fast as hf

pytestmark = pytest.mark.compile
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="onnx is not installed"
)


def close(given: Any, wanted: Any, limit: float = 1e-5) -> bool:
    return all(relative_l2(a, b) < limit for a, b in zip(maps(given), maps(wanted), strict=True))


def answer(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("head", ["v1", "v2p", "ocr", "higher", "c", "ci"])  # the others repeat these' layers
def test_any_batch(head: str) -> None:
    model = two_stages(head)
    program = hf.optimize_for_inference(model, image(64, 64)).export(dynamic=("batch",)).module()
    for batch in (1, 2, 5):
        x = image(64, 64, batch=batch)
        assert close(answer(program, x), answer(model, x))
    with pytest.raises(Exception, match=r"size|shape|[Gg]uard"):
        program(image(64, 96))


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("head", ["v2", "ocr", "face"])
def test_any_size_where_maps_come_to_each_others(head: str) -> None:
    model = two_stages(head)
    program = hf.optimize_for_inference(model, image(64, 64)).export(dynamic=("batch", "size")).module()
    for size, batch in (((64, 64), 1), ((96, 160), 2), ((77, 93), 3)):
        x = image(*size, batch=batch)
        assert close(answer(program, x), answer(model, x))


MMSEG = {"upsample": "bilinear", "upsample_to": "scale_then_target"}
# A dtype adds conversions, wherever sizes come from.
FACTORS: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("v1", {}, torch.float32),
    ("c", {}, torch.float32),
    ("v2p", {}, torch.float32),
    ("v2", MMSEG, torch.float32),
    ("v1", {}, torch.bfloat16),
]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("head", "options", "dtype"), FACTORS)
def test_multiples_where_maps_are_upsampled_by_factors(head: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = two_stages(head, **options)
    program = hf.optimize_for_inference(model, image(64, 64), dtype=dtype).export(dynamic=("size",)).module()
    for size in ((128, 160), (256, 256)):
        limit = 1e-5 if dtype == torch.float32 else 0.05
        assert close(answer(program, image(*size)), answer(model, image(*size)), limit)
    with pytest.raises(Exception, match=r"[Gg]uard"):  # the model refuses, or interpolates twice
        program(image(77, 90))


@pytest.mark.no_cover
@pytest.mark.slow
def test_one_side_alone_and_images_of_bytes() -> None:
    model = two_stages("v1")
    engine = hf.optimize_for_inference(model, image(64, 64))
    program = engine.export(dynamic=("width",)).module()
    assert close(answer(program, image(64, 160)), answer(model, image(64, 160)))
    with pytest.raises(Exception, match=r"size|shape|[Gg]uard"):
        program(image(96, 64))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    picture = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    engine = hf.optimize_for_inference(model, picture, normalize=(mean, std))
    program = engine.export(dynamic=("batch", "width")).module()
    other = torch.randint(0, 256, (3, 64, 128, 3), dtype=torch.uint8)
    assert close(answer(program, other), engine(other))


@pytest.mark.slow
def test_from_a_file_by_the_sizes_it_holds(tmp_path: Path) -> None:
    model = two_stages("v1")
    engine = hf.optimize_for_inference(model, image(64, 64))
    engine.save(tmp_path / "one.pt")
    engine.save(tmp_path / "two.pt", shapes=[(1, 3, 96, 128)])
    one, two = (hf.Engine.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    x = image(64, 64, batch=4)
    assert close(answer(one.export(dynamic=("batch",)).module(), x), answer(model, x))
    with pytest.raises(hf.InputError, match="holds no second size"):
        one.export((1, 3, 64, 64), dynamic=("size",))
    x = image(128, 160, batch=2)
    program = two.export((1, 3, 96, 128), dynamic=("batch", "size")).module()
    assert close(answer(program, x), answer(model, x))


class Flattened(nn.Module):
    """A head that writes the batch, or the size, into its calls."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = two_stages("v1"), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        n, c, h, w = y.shape
        if self.kind == "batch":
            return y.reshape(n, -1)
        if self.kind == "first":
            return y[torch.arange(n)]
        return y.flatten(1)[:, : c * h * w // 2]


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "axis"), [("batch", "batch"), ("first", "batch"), ("size", "size")])
def test_numbers_in_calls_are_refused(kind: str, axis: str) -> None:
    engine = hf.optimize_for_inference(Flattened(kind).eval(), image(64, 64))
    with pytest.raises(hf.InputError, match=r"cannot be dynamic: .* Its forward calls .* Export it without"):
        engine.export(dynamic=(axis,))
    assert close(answer(engine.export().module(), image(64, 64)), engine(image(64, 64)))


@pytest.mark.parametrize("dynamic", ["batch", ("depth",), (1,), None, {"batch": 1}])
def test_axes_that_do_not_exist(dynamic: Any, tmp_path: Path) -> None:
    engine = hf.optimize_for_inference(two_stages(), image(32, 32))
    for call in (engine.export, lambda **given: engine.export_onnx(tmp_path / "net.onnx", **given)):
        with pytest.raises(hf.InputError, match="accepted is a tuple of 'batch', 'height', 'width'"):
            call(dynamic=dynamic)
    assert not list(tmp_path.iterdir())


@pytest.mark.no_cover
@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(("head", "odd"), [("v1", False), ("ocr", True)])
def test_onnx_files_answer_any_batch_and_size(head: str, odd: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = two_stages(head)
    engine = hf.optimize_for_inference(model, image(64, 64))
    engine.export_onnx(tmp_path / "net.onnx", dynamic=("batch", "size"))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape == ["batch", 3, "height", "width"]
    sizes = [((64, 64), 1), ((96, 160), 3), *([((77, 93), 2)] if odd else [])]
    for size, batch in sizes:
        x = image(*size, batch=batch)
        found = [torch.from_numpy(array) for array in session.run(None, {"image": x.numpy()})]
        assert close(found, answer(model, x))
    if not odd:
        with pytest.raises(Exception, match="broadcast"):
            session.run(None, {"image": image(77, 90).numpy()})


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("head", ["c", "v2p"])  # any size is asked of other heads above
def test_onnx_files_answer_any_batch(head: str, tmp_path: Path) -> None:
    import onnxruntime

    model = enliven(two_stages(head))
    hf.optimize_for_inference(model, image(64, 64)).export_onnx(tmp_path / "net.onnx", dynamic=("batch",))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    for batch in (1, 4):
        x = image(64, 64, batch=batch)
        found = [torch.from_numpy(array) for array in session.run(None, {"image": x.numpy()})]
        assert close(found, answer(model, x))


@pytest.mark.no_cover
@pytest.mark.slow
def test_four_branches_at_odd_sizes() -> None:
    model = tiny("v2")
    program = hf.optimize_for_inference(model, image(64, 64)).export(dynamic=("batch", "size")).module()
    x = image(109, 67, batch=2)
    assert close(answer(program, x), answer(model, x))
