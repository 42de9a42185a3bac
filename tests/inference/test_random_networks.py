"""Networks put together at random from what plans regroup: plan, executors and folded module equal the network."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.folded import FoldedNetwork
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.steps import View, reads, writes

Size = tuple[int, int]
# Fuses every sum that it may, so that a wrong condition shows.
FUSING = Autotuner(torch.device("cpu"), torch.float64, "upsample_conv1x1_sum")


class Random(nn.Module):
    """A directed graph of operations, drawn by `seed`; every value may be read by any later one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.operations: list[tuple[str, list[int], object]] = []
        self.sizes: list[tuple[int, Size]] = [(4, draw.choice([(16, 24), (15, 17), (9, 8)]))]
        self.batch = draw.choice([1, 2])
        for _ in range(draw.randint(8, 26)):
            self._add(
                draw, draw.choice(["conv"] * 4 + ["add"] * 3 + ["cat", "resize", "resize", "relu", "norm", "call"])
            )
        last = len(self.sizes) - 1
        self.returned = sorted({last, *(draw.randint(1, last) for _ in range(draw.choice([0, 0, 2])))})

    def _add(self, draw: random.Random, kind: str) -> None:
        last = len(self.sizes)
        first = draw.randrange(max(0, last - 7), last)
        channels, size = self.sizes[first]
        alike = [i for i, (c, s) in enumerate(self.sizes) if s == size and (kind != "add" or c == channels)]
        inputs, extra = [first], None
        if kind == "conv":
            kernel, stride = draw.choice([1, 3]), draw.choice([1, 1, 2])
            out = draw.choice([4, 4, 8])
            layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=draw.random() < 0.5)]
            layers += [nn.BatchNorm2d(out, affine=draw.random() < 0.8)] * (draw.random() < 0.6)
            layers += [nn.ReLU(inplace=draw.random() < 0.5)] * (draw.random() < 0.4)
            extra, channels = self._layer(nn.Sequential(*layers)), out
            size = ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)
        elif kind == "add":
            inputs += draw.choices(alike, k=draw.randint(1, 2))
            extra = draw.random() < 0.3  # in place from the second addition on
        elif kind == "cat":
            inputs += draw.choices(alike, k=draw.randint(0, 2))
            channels = sum(self.sizes[i][0] for i in inputs)
        elif kind == "resize":
            size = draw.choice([s for _, s in self.sizes])
            extra = (size, draw.choice(["nearest", "bilinear"]), draw.random() < 0.5)
        elif kind == "norm":
            extra = self._layer(nn.BatchNorm2d(channels))
        self.operations.append((kind, inputs, extra))
        self.sizes.append((channels, size))
        if kind == "cat" and draw.random() < 0.6:  # a mixing convolution
            self.operations.append(("conv", [last], self._layer(nn.Conv2d(channels, 8, 1))))
            self.sizes.append((8, size))

    def _layer(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for kind, inputs, extra in self.operations:
            given = [values[i] for i in inputs]
            if kind in ("conv", "norm"):
                values.append(self.layers[extra](given[0]))
            elif kind == "add":
                total = given[0] + given[1]
                for other in given[2:]:
                    total = total.add_(other) if extra else total + other
                values.append(total)
            elif kind == "cat":
                values.append(torch.cat(given, 1))
            elif kind == "resize":
                size, mode, align = extra
                values.append(
                    F.interpolate(given[0], size=size, mode=mode, align_corners=(align and mode == "bilinear") or None)
                )
            else:
                values.append(F.relu(given[0]) if kind == "relu" else torch.tanh(given[0]))
        return [values[i] for i in self.returned]


def drawn(seed: int) -> tuple[Random, Tensor]:
    torch.manual_seed(seed)
    model = Random(seed).eval().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return model, torch.randn(model.batch, *(model.sizes[0][0], *model.sizes[0][1]), dtype=torch.float64)


def assert_apart(plan: Plan) -> None:
    """No step of a wave writes what another of it reads or writes."""

    def overlap(a: View, b: View) -> bool:
        return a.buffer == b.buffer and a.offset < b.offset + b.channels and b.offset < a.offset + a.channels

    for wave in plan.waves:
        for i in wave:
            target = writes(plan.steps[i])
            others = [
                v for j in wave if j != i for v in (*reads(plan.steps[j]), writes(plan.steps[j])) if v is not None
            ]
            assert target is None or not any(overlap(target, other) for other in others)


def assert_close(given: list[Tensor], wanted: list[Tensor], limit: float) -> None:
    for a, b in zip(given, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= limit * (b.norm() + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_random_networks(block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        model, x = drawn(seed)
        with torch.no_grad():
            wanted = model(x)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        plan = make_plan(model, tuple(x.shape), torch.float64)
        assert_apart(plan)
        assert_close(evaluate(plan, tensors, x), wanted, 1e-10)
        assert_close(FoldedNetwork(plan, tensors)(x), wanted, 1e-10)
        assert_close(TorchExecutor(plan, tensors, "cpu", autotuner=FUSING)(x), wanted, 1e-10)
        engine = hf.optimize_for_inference(model.float(), x.float(), verify=False)
        assert_close(engine(x.float()), wanted, 1e-4)
