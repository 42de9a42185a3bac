"""Engines in a model's parts, and as modules: which parts, when they execute, and what stays of the model."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_networks import enliven, image, relative_l2, two_stages
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError

X = image(32, 32, batch=2)


class Head(nn.Module):
    """As the heads of mmsegmentation: takes all maps, and is called by its `predict` only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 3, 1)

    def forward(self, maps: list[Tensor], scale: float = 1.0) -> Tensor:
        sizes = maps[0].shape[2:]
        joined = torch.cat([nn.functional.interpolate(m, sizes, mode="bilinear") for m in maps], 1)
        return self.conv(joined) * scale  # type: ignore[no-any-return]

    def predict(self, maps: list[Tensor]) -> Tensor:
        return self.forward(maps).argmax(1)


class Estimator(nn.Module):
    """As mmpose's: takes more than images, and its own methods call backbone and head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = hf.restore(two_stages("features")), Head()
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, inputs: Tensor, samples: Any, mode: str = "tensor") -> Any:
        maps = self.backbone(inputs)
        if mode == "tensor":
            return self.head.forward(maps)
        return self.head.predict(maps) if mode == "predict" else self.head(maps).square().mean()


def estimator() -> Estimator:
    return enliven(Estimator()).eval()  # type: ignore[no-any-return]


def parts(model: nn.Module) -> dict[str, str]:
    return {block.name: block.reason for block in hf.explain(model).blocks if block.kind == "engine"}


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_a_model_of_several_arguments_is_returned_itself() -> None:
    model = estimator()
    keys, own = list(model.state_dict()), [model(X, None), model(X, None, "predict")]
    parameters = list(model.parameters())
    assert hf.optimize_for_inference(model, X) is model
    assert parts(model) == {"backbone": "", "head": ""}
    with torch.inference_mode():
        given = [model(X, None), model(X, None, "predict")]
        other = model(image(32, 64), None)
    assert relative_l2(given[0], own[0]) <= 1e-5
    assert not torch.equal(given[0], own[0])
    assert torch.equal(given[1], own[1])
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model.head, Head)
    assert isinstance(model.backbone, hf.HRNet)
    assert hf.restore(model) is model
    assert type(model.head) is Head
    assert torch.equal(model(X, None), own[0])
    assert relative_l2(other, model(image(32, 64), None)) <= 1e-5
    with pytest.raises(InputError, match="not accelerated"):
        hf.explain(model.head)


def test_inplace_decides() -> None:
    model: Any = estimator()
    assert isinstance(hf.optimize_for_inference(model.backbone, X), hf.Engine)
    assert hf.optimize_for_inference(model.backbone, X, inplace=True) is model.backbone
    assert parts(model) == {"backbone": ""}
    hf.optimize_for_inference(model, X)  # again, from the beginning
    assert parts(model) == {"backbone": "", "head": ""}
    hf.restore(model)
    with pytest.raises(InputError, match="inplace=True"):
        hf.optimize_for_inference(model, X, inplace=False)
    for given, message in ((1, "True and False"), ("yes", "True and False")):
        with pytest.raises(InputError, match=message):
            hf.optimize_for_inference(model, X, inplace=given)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="normalize"):
        hf.optimize_for_inference(model, X, normalize=([0.5] * 3, [0.5] * 3))
    with pytest.raises(InputError, match="image batch"):
        hf.optimize_for_inference(model, X[0])
    with pytest.raises(InputError, match=r"model\.eval"):
        hf.optimize_for_inference(model.train(), X)
    with pytest.raises(InputError, match="as every HRNet has"):
        hf.optimize_for_inference(nn.Conv2d(3, 3, 1).eval(), X, inplace=True)
    assert not [m for m in model.modules() if hasattr(type(m), "replaced_class")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_compute_in_their_dtype(dtype: torch.dtype) -> None:
    model = estimator()
    with torch.no_grad():
        own = model(X, None)
        given = hf.optimize_for_inference(model, X, dtype=dtype)(X, None)
    assert given.dtype == torch.float32
    assert relative_l2(given, own) <= (1e-5 if dtype == torch.float32 else 0.05)


class Wrapped(nn.Module):
    """Several levels, a preprocessing that is no part, and something that depends on values at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare, self.inner, self.tail = nn.Conv2d(3, 3, 1), nn.Sequential(two_stages("v1")), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.prepare(x))
        scores = self.tail(y * 2)
        return scores[scores > scores.mean()]


class Blind(nn.Module):
    """Its forward needs more than an image to reach the network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(two_stages("v1"))

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.network(batch.get("image"))


class Twice(nn.Module):
    """Two HRNets, and a head whose inputs are of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = two_stages("v1"), two_stages("v1"), nn.Conv2d(6, 2, 1)

    def forward(self, color: Tensor, depth: Tensor | None = None) -> Tensor:
        a, b = self.first(color), self.second(color if depth is None else depth)
        return self.head(torch.cat([a, b], 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "call", "found"),
    [
        (Wrapped, lambda m: m(X), ["inner"]),
        (Blind, lambda m: m({"image": X}), ["network"]),
        (Twice, lambda m: m(X, X.flip(3)), ["first", "second"]),
    ],
)
def test_which_parts(make: Callable[[], nn.Module], call: Callable[[Any], Any], found: list[str]) -> None:
    model = enliven(make()).eval()
    with torch.no_grad():
        own = call(model)
        assert list(parts(hf.optimize_for_inference(model, X, inplace=True))) == found
        assert relative_l2(call(model), own) <= 1e-5


def test_no_part_can_be_followed() -> None:
    model = Blind().eval()
    model.network[0].forward = lambda x: x  # type: ignore[method-assign]
    model.network.append(nn.Hardtanh().train())
    with pytest.raises(InputError, match=r"no part of Blind around its HRNet can be followed.*training mode"):
        hf.optimize_for_inference(model, X, inplace=True)


def test_training_is_the_models_own() -> None:
    model, plain = estimator(), estimator()
    hf.optimize_for_inference(model, X)
    for one in (model, plain):
        one.train()
        one(X, None, "loss").backward()
    assert "training mode" in parts(model)["head"]
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)
    model.eval()
    with torch.no_grad(), pytest.raises(InputError, match="weights changed"):  # by the statistics
        model(X, None)
    model.head.conv.train()  # as Monte Carlo dropout sets some modules
    assert "training mode" in parts(model)["head"]
    assert not parts(model)["backbone"]


def test_gradients_are_the_models_own_with_a_warning() -> None:
    model, plain = estimator(), estimator()
    hf.optimize_for_inference(model, X)
    with pytest.warns(UserWarning, match=r"backbone runs its own forward.*torch\.no_grad"):
        given = model(X, None)
    assert torch.equal(given, plain(X, None))
    assert "no_grad" in parts(model)["backbone"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given.sum().backward()
        model(X, None)  # it has warned
    model.requires_grad_(False)
    assert torch.equal(model(X, None), model(X, None))
    assert parts(model) == {"backbone": "", "head": ""}
    x = X.clone().requires_grad_()
    model(x, None).sum().backward()
    y = X.clone().requires_grad_()
    plain(y, None).sum().backward()
    assert torch.equal(x.grad, y.grad)  # type: ignore[arg-type]


def test_other_arguments_are_the_models_own_with_a_warning() -> None:
    model = estimator()
    maps = list(model.backbone(X))
    hf.optimize_for_inference(model, X)
    with torch.no_grad(), pytest.warns(UserWarning, match="other arguments"):
        given = model.head(maps, scale=2.0)
    hf.restore(model)
    assert torch.equal(given, model.head(maps, scale=2.0))


def test_changed_weights_of_parts() -> None:
    strict, follows = estimator(), estimator()
    hf.optimize_for_inference(strict, X)
    hf.optimize_for_inference(follows, X, refresh="auto")
    with torch.no_grad():
        before = follows(X, None)
        for model in (strict, follows):
            model.head.conv.weight.mul_(2)
        with pytest.raises(InputError, match="weights changed"):
            strict(X, None)
        after = follows(X, None)
        assert not torch.equal(after, before)
        assert relative_l2(after, hf.restore(follows)(X, None)) <= 1e-5


@pytest.mark.parametrize("refresh", ["error", "auto", "never"])
def test_a_moved_model_is_refused(refresh: str) -> None:
    model = estimator()
    hf.optimize_for_inference(model, X, refresh=refresh)
    model.double()
    with torch.no_grad(), pytest.raises(InputError, match="optimize_for_inference again"):
        model(X.double(), None)
    hf.optimize_for_inference(model, X.double())
    with torch.no_grad():
        assert model(X.double(), None).dtype == torch.float64


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved])
def test_copies_are_the_model_as_it_was(copied: Callable[[nn.Module], Any]) -> None:
    model = estimator()
    own = model(X, None)
    hf.optimize_for_inference(model, X)
    other = copied(model)
    if copied is not copy.copy:  # which shares the parts with the original
        assert type(other.head) is Head
        assert torch.equal(other(X, None), own)
        assert not [m for m in other.modules() if hasattr(type(m), "replaced_class")]
    assert type(copy.copy(model.head)) is Head
    assert parts(model) == {"backbone": "", "head": ""}


@pytest.mark.slow
def test_tracers_and_compilers_see_the_model() -> None:
    model = estimator().requires_grad_(False)
    maps, own = model.backbone(X), model(X, None)
    hf.optimize_for_inference(model, X)
    traced = torch.jit.trace(lambda x: model(x, None), X, check_trace=False)
    assert torch.equal(traced(X), own)
    torch._dynamo.reset()
    compiled = torch.compile(model.head, backend="eager", fullgraph=True)
    assert torch.equal(compiled(maps), own)
    assert not torch.equal(model(X, None), own)


def test_accelerated_models() -> None:
    model = hf.accelerate(estimator())
    hf.optimize_for_inference(model, X)
    assert {block.kind for block in hf.explain(model).blocks} >= {"engine"}
    with torch.no_grad():
        given = model(X, None)
        with pytest.raises(InputError, match=r"restore\(model\)"):
            hf.accelerate(model)
        assert relative_l2(given, hf.restore(model)(X, None)) <= 1e-5


class Flagged(nn.Module):
    """An HRNet itself, whose forward has an option, as in the scene parsing repository."""

    def __init__(self) -> None:
        super().__init__()
        for name, child in hf.restore(two_stages("v1")).named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, every: bool = False) -> Any:
        x = self.layer1(self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))))
        maps = [self.transition1[0](x), self.transition1[1](x)]
        for module in self.stage2:
            maps = module(maps)
        return maps if every else maps[0]


class Locked(nn.Module):
    """Cannot be copied as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lock = nn.Sequential(two_stages("v1")), threading.Lock()

    def forward(self, x: Tensor, flip: bool = False) -> Any:
        return self.network(x.flip(3) if flip else x)


def test_an_hrnet_with_an_option_is_an_engine() -> None:
    model = enliven(Flagged()).eval()
    engine = hf.optimize_for_inference(model, X)
    assert isinstance(engine, hf.Engine)
    with torch.no_grad():
        own = model(X)
        assert relative_l2(engine(X), own) <= 1e-5
        hf.optimize_for_inference(model, X, inplace=True)
        assert parts(model) == {"": ""}
        assert torch.equal(model(X), engine(X))
        with pytest.warns(UserWarning, match="Flagged runs its own forward"):
            assert isinstance(model(X, every=True), list)


def test_a_model_that_cannot_be_copied() -> None:
    model = Locked().eval()
    assert list(parts(hf.optimize_for_inference(model, X))) == ["network"]


class Unweighted(nn.Module):
    """A neck without parameters, as mmpose's FeatureMapProcessor is, between a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = two_stages("features")
        self.neck = nn.Upsample(scale_factor=2.0)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, samples: object = None) -> Tensor:
        found: Tensor = self.head(self.neck(self.backbone(x)[0]))
        return found


def test_parts_without_parameters_and_hooks_inside_parts() -> None:
    model, x = Unweighted().eval(), image(64, 64)
    with torch.no_grad():
        wanted = model(x)
        hf.optimize_for_inference(model, x)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
        seen: list[str] = []
        handle = model.backbone.stage2.register_forward_hook(lambda *_: seen.append("stage2"))
        with pytest.warns(UserWarning, match="a hook is registered"):
            model(x)
        assert seen == ["stage2"]
        handle.remove()
        model(x)
        assert seen == ["stage2"]
        assert hasattr(type(model.backbone), "replaced_class")
        assert not hasattr(type(copy.copy(model.backbone)), "replaced_class")  # an engine has one module
