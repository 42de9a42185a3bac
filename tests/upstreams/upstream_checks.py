"""What the tests of the real packages and docs/upstreams.md compare: one figure or count for each claim."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv_ext
import torch
from tiny_networks import gradients, image, relative_l2
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from upstream_networks import TINY, Upstream, outputs_of, quietly
from upstream_trainers import STEPS, TRAINERS

import hrnet_fast as hf
from hrnet_fast.measure import _Watcher
from hrnet_fast.models.upstream import read_configuration


def accelerated(model: nn.Module, **options: Any) -> Any:
    return hf.accelerate(copy.deepcopy(model), **options)


def blocks(model: nn.Module) -> tuple[int, int, dict[str, int]]:
    """Return how many blocks execute fused, of how many, and the reasons of the others with their numbers.

    A layer that has no fused form in a fused row, such as a head's classifier, is no reason.
    """
    found = hf.explain(model).blocks
    reasons = Counter(b.reason for b in found if not b.fast)
    return sum(b.fast for b in found), len(found), dict(reasons)


@dataclass(frozen=True)
class Errors:
    """Largest relative L2 errors of a training step and an evaluation, over all tensors of a kind."""

    outputs: float
    gradients: float
    statistics: float

    def largest(self) -> float:
        return max(self.outputs, self.gradients, self.statistics)


def errors(fast: nn.Module, plain: nn.Module, x: Tensor) -> Errors:
    """Compare both models on `x`, [N, 3, H, W]; gradients include the input's."""
    found = []
    for model in (fast, plain):
        model.train().zero_grad()
        own = x.clone().requires_grad_()
        outs = outputs_of(model, own)
        weights = [torch.linspace(-1.0, 2.0, o.numel(), dtype=o.dtype).view_as(o) for o in outs]
        sum((o * w).mean() for o, w in zip(outs, weights, strict=True)).backward()  # type: ignore[union-attr]
        assert own.grad is not None
        statistics = {k: v.clone() for k, v in model.state_dict().items() if "running_" in k or "num_batches" in k}
        with torch.no_grad():
            outs += outputs_of(model.eval(), x)
        named = {str(k): o.detach() for k, o in enumerate(outs)}
        found.append((named, {**gradients(model), "the input": own.grad}, statistics))
    return Errors(*(_largest(a, e) for a, e in zip(*found, strict=True)))


def _largest(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest distance of two tensors, in units of the norm and a hundredth of the largest one's.

    Biases before a normalisation have no gradient but for rounding, on the scale of the largest gradients.
    """
    assert actual.keys() == expected.keys()
    scale = 0.01 * max(e.double().norm().item() for e in expected.values())
    found = []
    for key, e in expected.items():
        assert actual[key].dtype == e.dtype, key
        assert actual[key].shape == e.shape, key
        found.append((actual[key].double() - e.double()).norm().item() / (e.double().norm().item() + scale))
    assert not any(math.isnan(one) for one in found)
    return max(found)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that are alive between forward and backward in training, what checkpoints keep included."""
    model.train()
    watcher = _Watcher()
    with watcher:
        outs = outputs_of(model, x)
        alive: int = watcher.live
    del outs
    return alive


def engine_error(upstream: Upstream, model: nn.Module, x: Tensor) -> float:
    """Return the largest relative error of an engine of the model's HRNet, in `x`'s dtype."""
    backbone = model.eval().get_submodule(upstream.backbone)
    engine = hf.optimize_for_inference(backbone, x)
    with torch.no_grad():
        pairs = zip(tree_leaves(engine(x)), tree_leaves(backbone(x)), strict=True)
        return max(relative_l2(a, e) for a, e in pairs)


@dataclass(frozen=True)
class TrainingDifference:
    """Largest relative differences of steps of training: of the losses, and of all parameters and buffers after."""

    losses: float
    weights: float


def training_difference(upstream: Upstream, folder: Path) -> TrainingDifference:
    """Train a tiny model in float64 in the package's trainer, plain and accelerated; files are left in `folder`."""
    train, *_ = TRAINERS[upstream.package]
    plain = upstream.build().double()
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    images = [image(64, 64, batch=2, dtype=torch.float64) * (1 + k) for k in range(STEPS)]
    losses, states = [], []
    for model, name in ((plain, "plain"), (accelerated(plain), "fast")):
        (folder / name).mkdir(parents=True)
        losses.append(train(model, [upstream.batch(x) for x in images], folder / name))
        assert len(losses[-1]) == STEPS
        states.append(model.state_dict())
    fast, total, reasons = blocks(model)
    assert fast == total, reasons
    assert _largest(before, states[0]) > 1e-4, "training changed nothing"
    difference = max(abs(a - e) / abs(e) for a, e in zip(losses[1], losses[0], strict=True))
    return TrainingDifference(difference, _largest(states[1], states[0]))


def checkpoint_difference(upstream: Upstream, written: Path) -> float:
    """Return the relative error of the branches of a trained file's HRNet in this package, tiny as it was trained.

    Raises where the file or its way back does not give every tensor of the HRNet unchanged, and where a head that this
    package has does not compute the same in float32.
    """
    theirs = upstream.build(TINY).double().eval()
    theirs.load_state_dict(_read(written))
    backbone = theirs.get_submodule(upstream.backbone)
    x = image(64, 64, dtype=torch.float64)
    if upstream.package in ("mmpose", "mmseg", "timm"):
        with torch.no_grad():
            (whole,), (wanted,) = tree_leaves(hf.load_checkpoint(written).double()(x)), outputs_of(theirs, x)
        assert relative_l2(whole, wanted) < 1e-6
    if hasattr(theirs, "data_preprocessor"):
        options = {"type": f"{upstream.package}.HRNet", "extra": TINY.extra(), "in_channels": 3}
        ours = hf.load_backbone(hf.HRNet.from_config(options, upstream=upstream.package).double(), written)
    else:
        config = hf.load_checkpoint(written, part="backbone").config
        ours = hf.load_backbone(hf.HRNet(config).double(), written)
    found: list[Tensor] = []
    handle = backbone.stage4.register_forward_hook(lambda _module, _args, out: found.extend(out))
    with torch.no_grad():
        backbone(x)
        handle.remove()
        error = max(relative_l2(a, e) for a, e in zip(ours.eval()(x), found, strict=True))

    trunk = {k: v for k, v in backbone.state_dict().items() if k.startswith(_TRUNK)}
    back = hf.convert_checkpoint(dict(ours.state_dict()), to="backbone")
    assert back.keys() == trunk.keys(), sorted(back.keys() ^ trunk.keys())[:4]
    assert all(torch.equal(back[k], v) for k, v in trunk.items())
    return error


_TRUNK = ("conv1", "conv2", "bn1", "bn2", "layer1", "transition", "stage")


def _read(path: Path) -> dict[str, Tensor]:
    """Return a state_dict as the trainer wrote it: OpenMMLab's and Lightning's are inside a larger file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, weights_only=False)["state_dict"]
    return {k.removeprefix("net."): v for k, v in found.items()}


@dataclass(frozen=True)
class Configurations:
    """Files of a package's folder of configurations that have an HRNet.

    Attributes:
        found: files.
        loaded: those of which ``HRNet.from_config`` knows the whole network.
        backbones: those of which it knows the HRNet.
        reasons: why the others are refused, with their numbers.
    """

    found: int
    loaded: int
    backbones: int
    reasons: dict[str, int]


def configuration_files(package: str) -> list[Path]:
    """Return the files that name an HRNet, in themselves or by the files that they extend."""
    mmcv_ext.install()
    origin = importlib.util.find_spec(package)
    assert origin is not None
    assert origin.origin is not None
    root = Path(origin.origin).parent / ".mim" / "configs"
    files = (f for f in sorted(root.rglob("*.py")) if "_base_" not in f.parts)
    return [f for f in files if "hrnet" in f.name.lower() or "hrnet" in f.read_text("utf-8").lower()]


def configurations(files: Iterable[Path]) -> Configurations:
    """Read files by mmengine and by this package."""
    config = importlib.import_module("mmengine.config").Config
    counts, reasons = Counter[str](), Counter[str]()
    for file in files:
        with quietly():
            given = config.fromfile(file, import_custom_modules=False)
        if not any(_hrnets(given.to_dict())):
            continue
        counts["found"] += 1
        for part in ("all", "backbone"):
            try:
                read_configuration(given, part=part)
                counts[part] += 1
            except hf.ConfigError as error:
                reasons[str(error)] += 1
    return Configurations(counts["found"], counts["all"], counts["backbone"], dict(reasons))


def _hrnets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if str(value.get("type", "")).rsplit(".", 1)[-1] == "HRNet":
            yield value
        for one in value.values():
            yield from _hrnets(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _hrnets(one)
