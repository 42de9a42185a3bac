"""Engines answer as their models do: golden networks, every head, dtype and code base, any size and batch."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
import upstream_standins as standins
from golden_data import image as golden_image
from golden_data import load_case
from tiny_networks import ALL_HEADS, enliven, image, maps, relative_l2, tiny, two_stages
from torch import Tensor, nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.errors import HRNetFastError
from hrnet_fast.inference import verification
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.execution import cpu_executor
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.steps import CallStep
from hrnet_fast.measure import operator_calls, peak_activations
from hrnet_fast.skip_init import meta_device
from hrnet_fast.training.equivalence_check import onednn_disabled

native = pytest.mark.skipif(not cpu_executor.available(), reason="the compiled extension is not there")
CPU_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# Of one sum, in the type; a network's error beside PyTorch's own may be twice that, and one rounding more.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11, torch.float64: 2.0**-53}


def eager(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    with torch.no_grad(), onednn_disabled(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(x.clone())


def exactly(model: nn.Module, x: Tensor) -> Any:
    """The model's answer in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def assert_as_good(given: Any, torchs: Any, exact: Any, dtype: torch.dtype) -> None:
    for a, b, c in zip(maps(given), maps(torchs), maps(exact), strict=True):
        assert relative_l2(a, c) <= 2 * relative_l2(b, c) + ROUNDING[dtype]


def assert_answers(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> hf.Engine:
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    given, own = engine(x), eager(model, x, dtype)
    assert type(given) is type(own)
    assert {t.dtype for t in maps(given)} == {torch.float32}
    assert_as_good(given, own, exactly(model, x), dtype)
    return engine


@pytest.mark.no_cover
@native
# test_golden compares all golden networks' plans with their figures, and test_every_head has both dtypes; here, the
# networks with the most different steps in their full widths.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("official_cls_w18", torch.bfloat16),
        ("official_higher_w32", torch.float32),
        ("openseg_ocr_b_w48", torch.bfloat16),
    ],
)
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = load_case(name)
    model = hf.load_checkpoint(case.state(), impl="reference")
    x = golden_image(case.input_shape)
    engine = hf.optimize_for_inference(model, x, dtype=dtype, verify=dtype == torch.float32)
    assert_as_good(engine(x), eager(model, x, dtype), case.expected_outputs, dtype)


@pytest.mark.no_cover
@pytest.mark.slow
@native
@CPU_DTYPES
@pytest.mark.parametrize("head", ALL_HEADS)
def test_every_head(head: str, dtype: torch.dtype) -> None:
    assert_answers(tiny(head), image(64, 96, batch=2), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("head", ["v1", "c", "ocr"])
def test_on_the_librarys_operators(head: str, dtype: torch.dtype) -> None:
    model, x = two_stages(head), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    assert "PyTorch's operators" in engine.explain()
    given, exact = engine(x), exactly(model, x)
    for a, b in zip(maps(given), maps(exact), strict=True):
        assert a.dtype == torch.float32
        # Thirty layers' roundings of each sum, and the output's to float32.
        assert relative_l2(a, b) <= 30 * ROUNDING[dtype] + ROUNDING[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("outer", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", ["v1", "c"])
def test_outputs_have_the_models_dtype(head: str, outer: torch.dtype) -> None:
    model, x = two_stages(head).to(outer), image(64, 64).to(outer)
    exact = exactly(model, x)
    for dtype in (torch.float32, torch.bfloat16):
        engine = hf.optimize_for_inference(model, x, dtype=dtype, verify=outer == torch.float64)
        for a, b in zip(maps(engine(x)), maps(exact), strict=True):
            assert a.dtype == outer
            assert relative_l2(a, b) <= 30 * max(ROUNDING[dtype], ROUNDING[outer])


@pytest.mark.slow
@native
@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", ["v1", "c"])
def test_inputs_of_any_floating_dtype(head: str, given: torch.dtype) -> None:
    model, x = two_stages(head), image(64, 64).to(torch.bfloat16)
    engine = hf.optimize_for_inference(model, x.float())
    assert torch.equal(engine(x.to(given)), engine(x.float()))


@pytest.mark.slow
@native
@CPU_DTYPES
@pytest.mark.parametrize("size", [(65, 97), (33, 31)])
@pytest.mark.parametrize("align", [False, True])
def test_odd_sizes(size: tuple[int, int], align: bool, dtype: torch.dtype) -> None:
    for upsample_to in ("target", "scale_then_target"):
        model = tiny("v2", upsample="bilinear", upsample_to=upsample_to, align_corners=align)
        assert_answers(model, image(*size), dtype)


@pytest.mark.slow
@native
@CPU_DTYPES
@pytest.mark.parametrize("head", ["v1", "v2", "c"])
def test_batches(head: str, dtype: torch.dtype) -> None:
    model = two_stages(head)
    engine = assert_answers(model, image(batch=1), dtype)
    x = image(batch=3)
    for given in (engine(x), torch.cat([engine(one[None]) for one in x])):
        assert_as_good(given, eager(model, x, dtype), exactly(model, x), dtype)
    nothing = engine(x[:0])
    assert nothing.shape == (0, *engine(x).shape[1:])


@native
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_any_strides(layout: str) -> None:
    model, x = tiny("v1"), image(64, 64, batch=2)
    engine = hf.optimize_for_inference(model, x)
    wide = F.pad(x, (3, 5, 1, 2))
    given = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "sliced": wide[:, :, 1:-2, 3:-5],
        "expanded": x[:1].expand(2, -1, -1, -1),
    }[layout]
    assert torch.equal(engine(given), engine(given.contiguous()))


@native
@pytest.mark.parametrize("module", [standins.HighResolutionModule, standins.SegmentationModule])
@pytest.mark.parametrize("fast", [False, True])
def test_code_bases(module: type[nn.Module], fast: bool) -> None:
    model = standins.net(module, dtype=torch.float32).eval()
    if fast:
        hf.accelerate(model, impl="reference")
    assert_answers(model, image(64, 96))


@pytest.mark.slow
@native
@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_timm(options: dict[str, bool]) -> None:
    timm = pytest.importorskip("timm")
    assert_answers(enliven(timm.create_model("hrnet_w18_small", **options)).eval(), image(64, 64))


class Mapping(nn.Module):
    """Returns an ordered mapping with a map, a list, the input, a parameter, indices and a word."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = tiny("v1"), nn.Parameter(torch.ones(3))
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> Any:
        out = self.inner(x)
        picked = out.index_select(1, self.order)
        return OrderedDict(out=out, more=[picked, (x, self.scale)], best=out.flatten(2).argmax(2), name="maps")


@native
@CPU_DTYPES
def test_mappings(dtype: torch.dtype) -> None:
    model, x = Mapping().eval(), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype, verify=False)
    given = engine(x)
    assert type(given) is OrderedDict
    assert list(given) == ["out", "more", "best", "name"]
    picked, (same, scale) = given["more"]
    assert isinstance(given["more"], list)
    assert torch.equal(picked, given["out"][:, [2, 0, 1]])
    assert torch.equal(same, x)
    assert torch.equal(scale, model.scale)
    assert torch.equal(given["best"], given["out"].flatten(2).argmax(2))
    assert given["name"] == "maps"
    assert_as_good(given["out"], eager(model.inner, x, dtype), exactly(model.inner, x), dtype)


@pytest.mark.traced
@pytest.mark.slow
@native
@CPU_DTYPES
@pytest.mark.parametrize("first", [1, 5])
def test_normalize(first: int, dtype: torch.dtype) -> None:
    """Bytes in; with a first layer of 5x5, which is called as it is, too."""
    stem = nn.Conv2d(3, 3, first, padding=first // 2)
    model = enliven(nn.Sequential(stem, *([nn.Conv2d(3, 3, 1)] if first > 1 else []), tiny("v1"))).eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    x = ((images.double() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).float()
    if first > 1:
        with pytest.raises(hf.InputError, match="normalize"):
            hf.optimize_for_inference(model, images, dtype=dtype, normalize=(mean, std))(images)
        return
    engine = hf.optimize_for_inference(model, images, dtype=dtype, normalize=(mean, std))
    assert_as_good(engine(images), eager(model, x, dtype), exactly(model, x), dtype)
    assert torch.equal(engine(images[:, ::2, ::3]), engine(images[:, ::2, ::3].contiguous()))


@pytest.mark.no_cover
@pytest.mark.slow
@native
def test_callers_autocast_changes_nothing() -> None:
    x = image(64, 64)
    for dtype in (torch.float32, torch.float64):
        engine = hf.optimize_for_inference(two_stages("c"), x, dtype=dtype)
        alone = engine(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(engine(x), alone)
    with torch.inference_mode():
        assert torch.equal(engine(x), alone)


def test_verify_refuses_another_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(*args: Any) -> Any:
        plan = make_plan(*args)
        k = next(k for k, step in enumerate(plan.steps) if any(getattr(step, "relu", None) or (0, 0)))
        steps = list(plan.steps)
        steps[k] = dataclasses.replace(steps[k], relu=(0, 0))  # type: ignore[type-var, call-arg]
        return dataclasses.replace(plan, steps=tuple(steps))

    monkeypatch.setattr(verification, "make_plan", forgets)
    with pytest.raises(HRNetFastError, match="differs"):
        hf.optimize_for_inference(tiny(), image(64, 64))


VIEWS = ("flatten", "transpose", "unsqueeze", "view", "permute", "squeeze")


def launched(engine: hf.Engine, x: Tensor) -> int:
    """Steps that the compiled programs of one call run."""
    (executor,) = engine._executors.values()
    return sum(0 if isinstance(part, int) else part.program.steps for part in executor._segments)  # type: ignore[attr-defined]


@pytest.mark.no_cover
@pytest.mark.slow
@native
@pytest.mark.parametrize("head", ["v1", "v2", "c", "ocr"])
@pytest.mark.usefixtures("_known_ceilings")
def test_the_executor_launches_what_the_plan_says(head: str) -> None:
    model, x = tiny(head), image(64, 64)
    engine = hf.optimize_for_inference(model, x)
    plan = engine.plan()
    rows = engine.profile(x, rounds=1).steps
    assert sorted(row.step for row in rows) == list(range(plan.launches()))
    # PyTorch computes the plan's calls and nothing beside them. Some are several operators, as a product with a
    # transposed matrix is; those of views are none.
    calls = [step for step in plan.steps if isinstance(step, CallStep)]
    computing = sum(not getattr(step.function, "__name__", "").endswith(VIEWS) for step in calls)
    assert launched(engine, x) == plan.launches() - len(calls)
    torchs = operator_calls(lambda: engine(x))
    assert computing <= torchs <= 2 * computing
    assert len(calls) + launched(engine, x) < operator_calls(lambda: eager(hf.restore(model), x, torch.float32))


@pytest.mark.no_cover
@pytest.mark.slow
@native
@CPU_DTYPES
def test_memory_of_the_segmentation_network(dtype: torch.dtype) -> None:
    """Its arena beside what eager PyTorch keeps alive at once: by sizes alone, so no data is needed."""
    with meta_device():
        model = hf.create_model("hrnetv2_w48_seg", impl="reference").eval().to(dtype)
    plan = make_plan(model, (1, 3, 512, 1024), dtype)
    sizes = [_C_bytes(dtype, b) for b in plan.buffers]
    arena = assign_offsets([Interval(size, b.first, b.last) for size, b in zip(sizes, plan.buffers, strict=True)])[1]
    x = torch.empty(1, 3, 512, 1024, dtype=dtype, device="meta")
    with torch.no_grad():
        usual = peak_activations(lambda: model(x))
    assert usual > 10 * x.nbytes
    assert arena <= 0.75 * usual


def _C_bytes(dtype: torch.dtype, buffer: Any) -> int:
    from hrnet_fast import _C

    return int(_C.map_bytes(cpu_executor.DTYPES[dtype], buffer.n, buffer.height, buffer.width, buffer.channels))
