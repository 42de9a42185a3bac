"""Memory formats, dtypes, autocast, copies, files and PyTorch's compilers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from tiny_networks import ALL_HEADS, assert_same, gradients, image, maps, relative_l2, tiny, train_once, two_stages
from torch import Tensor

import hrnet_fast as hf


def run(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("head", ALL_HEADS)
def test_channels_last(head: str) -> None:
    model = tiny(head)
    x = image(64, 96, batch=2)
    expected = maps(run(model, x))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for a, e in zip(maps(run(model, x.to(memory_format=torch.channels_last))), expected, strict=True):
        assert relative_l2(a, e) <= 1e-5


def test_strided_views() -> None:
    model = tiny("v2")
    large = image(130, 195)
    view = large[:, :, ::2, ::3]
    assert not view.is_contiguous()
    assert_same(run(model, view), run(model, view.contiguous()))
    transposed = image(97, 65).transpose(2, 3)
    assert_same(run(model, transposed), run(model, transposed.contiguous()))


def test_the_input_is_not_written_to() -> None:
    for head in ("v1", "features"):
        x = image(batch=2)
        before = x.clone()
        train_once(tiny(head), x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ALL_HEADS)
def test_autocast(head: str, dtype: torch.dtype) -> None:
    model, x = tiny(head), image(64, 96, batch=2)
    expected = maps(run(model, x))
    with torch.autocast("cpu", dtype=dtype):
        outputs = maps(run(model, x))
    # About ten roundings of 2^-9 (bfloat16) or 2^-11 (float16) in a row; more is a lost factor somewhere.
    tolerance = 10 * 2.0 ** (-9 if dtype == torch.bfloat16 else -11)
    for a, e in zip(outputs, expected, strict=True):
        assert relative_l2(a, e) <= tolerance


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_under_autocast(checkpointing: bool) -> None:
    plain, mixed = tiny(), tiny(gradient_checkpointing=checkpointing)
    x = image(batch=2)
    train_once(plain, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train_once(mixed, x)
    expected = gradients(plain)
    for key, gradient in gradients(mixed).items():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all(), key
    cosine = torch.nn.functional.cosine_similarity
    for key in ("final_layer.weight", "stage4.0.branches.0.0.conv2.weight"):
        assert cosine(gradients(mixed)[key].flatten(), expected[key].flatten(), dim=0) > 0.98, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whole_network_in_another_dtype(dtype: torch.dtype) -> None:
    model = tiny("v2")
    expected = run(model, image())
    output = run(copy.deepcopy(model).to(dtype), image(dtype=torch.float32).to(dtype))
    assert output.dtype == dtype
    assert relative_l2(output, expected) <= (5e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ALL_HEADS)
def test_deepcopy_and_pickle(head: str) -> None:
    model, x = tiny(head), image()
    expected = run(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, hf.HRNet)
        assert twin.config == model.config
        assert (twin.impl, twin.family) == (model.impl, model.family)
        assert_same(run(twin, x), expected)
        assert type(hf.restore(twin)) is hf.HRNet
        with torch.no_grad():
            twin.conv1.weight.zero_()
    assert_same(run(model, x), expected)


def test_state_dict_through_a_file() -> None:
    model, twin = tiny("ocr"), tiny("ocr")
    with torch.no_grad():
        twin.conv1.weight.zero_()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(run(twin, image()), run(model, image()))


@pytest.mark.slow
def test_whole_module_through_a_file() -> None:
    model = tiny("c")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_same(run(torch.load(file, weights_only=False), image()), run(model, image()))


def test_heads_hold_no_tensors_of_their_own() -> None:
    """Layers replaced on the network are the ones that compute."""
    model = tiny("v1")
    x = image()
    before = run(model, x)
    model.final_layer = torch.nn.Conv2d(4, 5, 1)
    assert before.shape[1] == 3
    assert run(model, x).shape[1] == 5


def test_hooks_and_submodule_access_work() -> None:
    model = tiny("v2")
    seen: list[tuple[int, ...]] = []
    model.last_layer.register_forward_hook(lambda _m, _i, output: seen.append(tuple(output.shape)))
    run(model, image())
    assert seen == [(1, 3, 16, 16)]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
def test_captured_in_one_graph() -> None:
    """In evaluation; the operators' own tests compile what is captured with Inductor."""
    torch.compiler.reset()
    model, x = two_stages("v2"), image(65, 97)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_l2(run(compiled, x), run(model, x)) <= 1e-5


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("head", ["v2p", "ocr", "higher"])  # the others repeat these' layers
def test_traced_in_one_graph_for_training(head: str) -> None:
    """Heads through the capture of forward and backward; the backend only replays what was captured."""
    torch.compiler.reset()
    # Biases before a normalisation have rounding for a gradient, which two orders of summing need not share.
    eager, captured = (two_stages(head, conv_bias=False, dropout=0.0).double() for _ in range(2))
    x = image(64, 64, batch=2, dtype=torch.float64)
    expected = train_once(eager, x)
    captured.compile(fullgraph=True, backend="aot_eager")
    for a, e in zip(train_once(captured, x), expected, strict=True):
        assert relative_l2(a, e) <= 1e-12
    own = gradients(captured)
    for key, gradient in gradients(eager).items():
        assert relative_l2(own[key], gradient) <= 1e-9, key
    for key, value in captured.named_buffers():
        torch.testing.assert_close(value, eager.get_buffer(key), msg=key)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("head", ALL_HEADS)
def test_exported(head: str) -> None:
    model, x = two_stages(head), image(64, 96)
    program = torch.export.export(model, (x,))
    for a, e in zip(maps(run(program.module(), x)), maps(run(model, x)), strict=True):
        assert relative_l2(a, e) <= 1e-6
