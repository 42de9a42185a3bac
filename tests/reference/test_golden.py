"""The reference network, plain, accelerated and as an engine's plan, against the upstreams' recorded results."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from golden_data import GoldenCase, case_names, fill, image, load_case
from tiny_networks import maps, relative_l2
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.steps import CallStep

OUTPUT_TYPES = {
    "seg_ocr": list,
    "higher_hrnet": list,
    "timm_features": list,
    "mmdet": tuple,
    "openseg_ocr": tuple,
}


@pytest.fixture(scope="module", params=case_names())
def loaded(request: pytest.FixtureRequest) -> tuple[GoldenCase, hf.HRNet]:
    _direction.cache_clear()
    case = load_case(request.param)
    return case, hf.load_checkpoint(case.state(), impl="reference")


# Networks of other cases under other names: accelerated, they would be trained twice.
REPEATED = ("mmpose_w32", "openseg_w48", "openseg_ocr_b_w48", "timm_hrnet_w32")


def copied(network: hf.HRNet, accelerated: bool) -> hf.HRNet:
    model = copy.deepcopy(network)
    if accelerated:
        hf.accelerate(model, impl="reference")
        assert all(block.fast for block in hf.explain(model).blocks), str(hf.explain(model))
    return model


def assert_stayed_fast(model: hf.HRNet) -> None:
    """If it is accelerated, no call of any block took the plain path."""
    if any(hasattr(m, "unfused_class") for m in model.modules()):
        assert all(block.fast for block in hf.explain(model).blocks), str(hf.explain(model))


def test_all_cases_are_there() -> None:
    assert len(case_names()) == 14


@pytest.mark.no_cover
@pytest.mark.slow
def test_recognised(loaded: tuple[GoldenCase, hf.HRNet]) -> None:
    case, model = loaded
    config, facts = model.config, case.facts
    assert model.family == case.family or {model.family, case.family} == {"cls", "timm"}  # these share their names
    assert config.upsample == facts["upsample"]
    if "model" in facts:
        name = facts["model"] if facts["model"] in hf.list_models() else facts["model"] + "_c"
        assert config.stages == hf.get_config(name).stages
    else:
        width = facts["width"]
        assert [stage.channels[0] for stage in config.stages] == [64, width, width, width]
    if "num_outputs" in facts:
        assert config.head.num_outputs == facts["num_outputs"]
    if "align_corners" in facts:
        assert config.align_corners == facts["align_corners"]
    if "num_outs" in facts:
        assert config.head.num_levels == facts["num_outs"]
    momenta = {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {facts.get("bn_momentum", 0.1)}
    assert not model.training
    assert model.notes == ()


# In float32 the accelerated network has operators of its own; the plain one has PyTorch's in either dtype.
@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(
    ("accelerated", "dtype", "tolerance"),
    [(False, torch.float64, 1e-6), (True, torch.float64, 1e-6), (True, torch.float32, 1e-5)],
)
def test_evaluation(
    loaded: tuple[GoldenCase, hf.HRNet], accelerated: bool, dtype: torch.dtype, tolerance: float
) -> None:
    case, model = loaded[0], copied(loaded[1], accelerated).to(dtype)
    with torch.no_grad():
        output = model(image(case.input_shape).to(dtype))
    assert type(output) is OUTPUT_TYPES.get(case.family, Tensor)
    for actual, expected in zip(maps(output), case.expected_outputs, strict=True):
        assert actual.dtype == dtype
        assert relative_l2(actual, expected) <= tolerance
    assert_stayed_fast(model)


# Of the heads whose layers no step of a plan describes, something is left to the model's own operators.
CALLS_OF_THEIR_OWN = ("cls", "timm", "seg_ocr", "higher_hrnet", "openseg_ocr")


@pytest.mark.no_cover
@pytest.mark.slow
def test_plan(loaded: tuple[GoldenCase, hf.HRNet]) -> None:
    case, model = loaded[0], copy.deepcopy(loaded[1]).double()
    x = image(case.input_shape).double()
    plan = make_plan(model, tuple(x.shape), torch.float64)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for actual, expected in zip(maps(evaluate(plan, tensors, x)), case.expected_outputs, strict=True):
        assert relative_l2(actual, expected) <= 1e-6
    assert case.family in CALLS_OF_THEIR_OWN or not any(isinstance(step, CallStep) for step in plan.steps)


@functools.cache
def _direction(key: str, shape: tuple[int, ...]) -> Tensor:
    """What a gradient is multiplied with for its probe; the case's two networks have the same."""
    return fill(f"{key}#probe.bias", shape).double()


@pytest.mark.no_cover
@pytest.mark.slow
def test_training(loaded: tuple[GoldenCase, hf.HRNet]) -> None:
    case, network = loaded
    for accelerated in (False,) if case.name in REPEATED else (False, True):
        _check_training(case, copied(network, accelerated).double().train())


def _check_training(case: GoldenCase, model: hf.HRNet) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # the recorded run had none, or its figures could not be repeated
    outputs = maps(model(image((2, *case.input_shape[1:])).double()))
    loss = torch.stack([(o * image(tuple(o.shape)).double()).mean() for o in outputs]).sum()
    loss.backward()
    assert loss.item() == pytest.approx(float(case.results["train_loss"]), rel=1e-6)
    assert_stayed_fast(model)

    names = hf.FAMILIES[case.family].from_canonical
    _check_gradients(case, names({k: p.grad for k, p in model.named_parameters() if p.grad is not None}))
    stats = {k: v for k, v in names(model.state_dict()).items() if "running_" in k}
    expected = case.expected("stat_keys", "stat_norm")
    assert stats.keys() == expected.keys()
    for key, value in stats.items():
        assert value.norm().item() == pytest.approx(expected[key], rel=1e-6), key


def _check_gradients(case: GoldenCase, gradients: dict[str, Tensor]) -> None:
    norms = case.expected("grad_keys", "grad_norm")
    probes = case.expected("grad_keys", "grad_probe")
    assert gradients.keys() == norms.keys()
    # A bias before a normalisation has no influence, so its gradient is zero but for rounding, which scales with the
    # gradients it is summed from: float64 rounding of the largest one is the least that can be told from zero.
    floor = 1e-12 * max(norms.values())
    for key, gradient in gradients.items():
        assert abs(gradient.norm().item() - norms[key]) <= 1e-6 * norms[key] + floor, key
        direction = _direction(key, tuple(gradient.shape))
        # A probe sums signed terms that may cancel; its rounding scales with the vectors, not with the result.
        rounding = floor * direction.norm().item()
        probe = (gradient * direction).sum().item()
        assert abs(probe - probes[key]) <= 1e-6 * abs(probes[key]) + rounding, key
