"""HigherHRNet's head: compared with the authors' formula, inferred from keys, converted, accelerated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import enliven, gradients, image, maps, relative_l2, tiny, train_once
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf

Step = hf.DeconvConfig
# (kernel of the last convolutions, steps, tags)
HEADS: dict[str, tuple[int, tuple[hf.DeconvConfig, ...], tuple[int, ...]]] = {
    "published": (1, (Step(4, num_blocks=2),), (3, 0)),
    "no_concatenation": (1, (Step(4, num_blocks=1, concat=False),), (3, 0)),
    "two_steps": (1, (Step(4, num_blocks=1), Step(6, 2, 1)), (3, 3, 0)),
    "one_tag": (3, (Step(5, 3, 1),), (1, 1)),
    "no_tags": (1, (Step(4, num_blocks=0),), (0, 0)),
    "no_step": (1, (), (3,)),
}
PADDING = {4: (1, 0), 3: (1, 1), 2: (0, 0)}


def network(name: str, **options: Any) -> hf.HRNet:
    kernel, steps, tags = HEADS[name]
    return tiny("higher", kernel_size=kernel, deconvs=steps, tags=tags, **options)


def by_hand(model: hf.HRNet, x: Tensor) -> list[Tensor]:
    """The head written out over the state_dict: final convolution, concatenation, deconvolution, units, and again."""
    state, head = model.state_dict(), model.config.head

    def norm(y: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *parts, eps=1e-5)

    def final(y: Tensor, i: int) -> Tensor:
        weight, bias = (state[f"final_layers.{i}.{part}"] for part in ("weight", "bias"))
        return F.conv2d(y, weight, bias, padding=head.kernel_size // 2)

    y = model.forward_features(x)[0]
    outputs = [final(y, 0)]
    for i, step in enumerate(head.deconvs):
        y = torch.cat([y, outputs[-1]], 1) if step.concat else y
        pad, extra = PADDING[step.kernel_size]
        name = f"deconv_layers.{i}"
        y = F.conv_transpose2d(y, state[f"{name}.0.0.weight"], None, 2, pad, extra)
        y = F.relu(norm(y, f"{name}.0.1"))
        for k in range(1, step.num_blocks + 1):
            unit = f"{name}.{k}.0"
            z = F.relu(norm(F.conv2d(y, state[f"{unit}.conv1.weight"], padding=1), f"{unit}.bn1"))
            y = F.relu(norm(F.conv2d(z, state[f"{unit}.conv2.weight"], padding=1), f"{unit}.bn2") + y)
        outputs.append(final(y, i + 1))
    return outputs


@pytest.mark.parametrize("name", HEADS)
def test_outputs(name: str) -> None:
    model = network(name).double()
    x = image(64, 96, dtype=torch.float64)
    with torch.no_grad():
        outputs = model(x)
        expected = by_hand(model, x)
    assert type(outputs) is list
    tags = HEADS[name][2]
    assert [tuple(o.shape) for o in outputs] == [
        (1, 3 + t, 16 * 2**i, 24 * 2**i) for i, t in enumerate(tags)
    ]  # fmt: skip
    for a, e in zip(outputs, expected, strict=True):
        assert relative_l2(a, e) <= 1e-12


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("family", ["higher_hrnet", "mmpose_0x_higher"])
def test_inferred_from_keys(name: str, family: str) -> None:
    """All but the meaning of equally many channels is in the shapes."""
    model = network(name)
    state = hf.FAMILIES[family].from_canonical(model.state_dict())
    loaded = hf.load_checkpoint(state)
    assert loaded.family == family
    assert loaded.notes == ()
    head, own = loaded.config.head, model.config.head
    assert (head.kernel_size, head.deconvs) == (own.kernel_size, own.deconvs)
    outputs = [head.num_outputs + tags for tags in head.tags]
    assert outputs == [own.num_outputs + tags for tags in own.tags]
    x = image()
    with torch.no_grad():
        for a, e in zip(loaded(x), model(x), strict=True):
            assert torch.equal(a, e)


def test_wrapped_for_half_precision() -> None:
    """The authors' half-precision training wraps the network as the second of two modules."""
    model = network("published")
    state = {f"1.{key}": value for key, value in model.state_dict().items()}
    assert hf.load_checkpoint(state).family == "higher_hrnet"


@pytest.mark.slow
def test_between_families_and_to_a_backbone() -> None:
    state = network("published").state_dict()
    there = hf.convert_checkpoint(state, to="mmpose_0x_higher")
    assert {key.split(".")[0] for key in there} == {"backbone", "keypoint_head"}
    back = hf.convert_checkpoint(there, to="higher_hrnet")
    assert all(torch.equal(back[key], value) for key, value in state.items())
    with pytest.raises(hf.CheckpointError, match=r"cannot be written as 'pose'.*higher_hrnet"):
        hf.convert_checkpoint(state, to="pose")
    trunk = hf.load_checkpoint(hf.convert_checkpoint(state, to="backbone"))
    assert trunk.config.head.kind == "features"


@pytest.mark.parametrize("name", ["published", "two_steps"])
def test_accelerated_in_training(name: str) -> None:
    plain = enliven(hf.HRNet(network(name).config, impl="reference")).double()
    fast = hf.HRNet(plain.config, impl="auto").double()
    fast.load_state_dict(plain.state_dict())
    x = image(64, 64, batch=2, dtype=torch.float64)
    for a, e in zip(train_once(fast, x), train_once(plain, x), strict=True):
        assert relative_l2(a, e) <= 1e-12
    expected = gradients(plain)
    for key, gradient in gradients(fast).items():
        assert (gradient - expected[key]).norm() <= 1e-9 * max(1.0, expected[key].norm().item()), key
    assert all(block.fast for block in hf.explain(fast).blocks), str(hf.explain(fast))


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_engine(size: tuple[int, int]) -> None:
    model = network("two_steps")
    x = image(*size, batch=2)
    with torch.no_grad():
        expected = maps(model.double()(x.double()))
    engine = hf.optimize_for_inference(model.float(), x)
    outputs = engine(x)
    assert type(outputs) is list
    for a, e in zip(outputs, expected, strict=True):
        assert relative_l2(a, e) <= 1e-5


@pytest.mark.parametrize("width", [32, 48])
def test_named(width: int) -> None:
    config = hf.get_config(f"higher_hrnet_w{width}")
    assert config.head.deconvs == (hf.DeconvConfig(width, 4, 4, True),)
    assert (config.head.num_outputs, config.head.tags) == (17, (17, 0))
    assert hf.HRNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": (3,)}, "tags"),
        ({"tags": (3, -1)}, "tags"),
        ({"num_outputs": 0}, "keypoints"),
        ({"deconvs": ({"channels": 4, "kernel_size": 5},)}, "kernel_size=5"),
        ({"deconvs": ({"channels": 0},)}, "channels"),
        ({"deconvs": ({"channels": 4, "num_blocks": -1},)}, "num_blocks"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        hf.HRNetConfig.make(32, "higher", 17).override(**options)
