"""Plans: exact in float64, as few launches as the algebra promises, buffers that never collide."""

from __future__ import annotations

import copy

import pytest
import torch
import upstream_standins as standins
from tiny_networks import ALL_HEADS, enliven, image, maps, relative_l2, tiny, tiny_config
from torch import Tensor, nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.folded import FoldedNetwork
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.steps import CallStep, ConvStep, reads, writes
from hrnet_fast.skip_init import meta_device

EXACT = 1e-10


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_exact(model: nn.Module, x: Tensor) -> Plan:
    """The plan and its folded module compute what the model does, in float64."""
    plan = make_plan(model, tuple(x.shape), torch.float64)
    with torch.no_grad():
        wanted = model(x.clone())
        results = [evaluate(plan, tensors(model), x), FoldedNetwork(plan, tensors(model))(x)]
    for given in results:
        assert type(given) is type(wanted)
        for a, b in zip(maps(given), maps(wanted), strict=True):
            assert relative_l2(a, b) <= EXACT
    assert_no_collision(plan)
    return plan


def assert_no_collision(plan: Plan) -> None:
    """Every map is read between its writing and its buffer's end, and no two live buffers share memory."""
    sizes = [Interval(b.elements, b.first, b.last) for b in plan.buffers]
    offsets, total = assign_offsets(sizes)
    for i, (a, p) in enumerate(zip(sizes, offsets, strict=True)):
        assert p + a.size <= total
        for b, q in zip(sizes[:i], offsets[:i], strict=True):
            apart = a.last < b.first or b.last < a.first or p + a.size <= q or q + b.size <= p
            assert apart
    written: dict[int, set[int]] = {}
    for k, wave in enumerate(plan.waves):
        outs = [v for i in wave if (v := writes(plan.steps[i])) is not None]
        for i in wave:
            for view in reads(plan.steps[i]):
                channels = set(range(view.offset, view.offset + view.channels))
                assert channels <= written[view.buffer]
                assert plan.buffers[view.buffer].first <= k <= plan.buffers[view.buffer].last
                # A wave's steps run in any order: one may write over a map that only it reads, element by element.
                others = [o for j in wave if j != i and (o := writes(plan.steps[j])) is not None]
                assert not any(o.buffer == view.buffer and _overlap(o, view) for o in others)
        for view in outs:
            written.setdefault(view.buffer, set()).update(range(view.offset, view.offset + view.channels))


def _overlap(a: object, b: object) -> bool:
    return a.offset < b.offset + b.channels and b.offset < a.offset + a.channels  # type: ignore[attr-defined, no-any-return]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("head", ALL_HEADS)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_every_head(head: str, impl: str) -> None:
    model = enliven(hf.HRNet(tiny_config(head), impl=impl)).eval().double()
    assert_exact(model, image(64, 96, batch=2, dtype=torch.float64))


@pytest.mark.parametrize("size", [(65, 97), (33, 31), (64, 64)])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("upsample_to", ["target", "scale_then_target"])
def test_odd_sizes(size: tuple[int, int], align: bool, upsample_to: str) -> None:
    model = tiny("v2", upsample="bilinear", upsample_to=upsample_to, align_corners=align).double()
    assert_exact(model, image(*size, dtype=torch.float64))


@pytest.mark.parametrize(
    "change", [{"fusion": "product"}, {"downsample": "bilinear"}, {"norm": hf.NormConfig("frozen")}]
)
def test_ablations(change: dict[str, object]) -> None:
    assert_exact(tiny(**change).double(), image(64, 64, dtype=torch.float64))


@pytest.mark.parametrize(
    "module",
    [standins.HighResolutionModule, standins.SegmentationModule, standins.AlignedModule],
)
@pytest.mark.parametrize("fast", [False, True])
def test_code_bases(module: type[nn.Module], fast: bool) -> None:
    model = standins.net(module).eval()
    if fast:
        hf.accelerate(model, impl="reference")
    before = str(hf.explain(model)) if fast else ""
    assert_exact(model, image(64, 96, dtype=torch.float64))
    assert not fast or str(hf.explain(model)) == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"features_only": True}])
def test_timm(options: dict[str, bool]) -> None:
    timm = pytest.importorskip("timm")
    model = enliven(timm.create_model("hrnet_w18_small", **options)).eval().double()
    plan = assert_exact(model, image(64, 64, dtype=torch.float64))
    assert {s.function for s in plan.steps if isinstance(s, CallStep)} <= {
        F.adaptive_avg_pool2d,
        F.linear,
        Tensor.flatten,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "ungrouped", "grouped"),
    [("hrnetv1_w32_pose", (256, 192), 285, 140), ("hrnetv2_w48_seg", (512, 1024), 300, 155)],
)
def test_launches(name: str, size: tuple[int, int], ungrouped: int, grouped: int) -> None:
    with meta_device():
        model = hf.create_model(name, impl="reference").eval()
    plan = make_plan(model, (1, 3, *size), torch.float32)
    assert plan.launches() <= ungrouped
    assert plan.launches(grouped=True) <= grouped
    assert plan.launches() == sum(map(len, plan.waves))
    assert f"{plan.launches()} steps" in str(plan)
    dot = plan.to_dot()
    assert dot.count("[label=") == len(plan.steps)
    assert dot.count("->") >= len(plan.steps) - 1


@pytest.mark.no_cover
@pytest.mark.slow
def test_flops_are_the_networks_without_what_the_order_saves() -> None:
    from hrnet_fast.complexity import network_complexity

    config = hf.get_config("hrnetv1_w32_pose")
    with meta_device():
        model = hf.HRNet(config, impl="reference").eval()
    plan = make_plan(model, (1, 3, 256, 192), torch.float32)
    assert plan.flops / 2 / 2**30 == pytest.approx(network_complexity(config, (256, 192))[1], rel=1e-6)
    assert 0 < plan.peak_memory < plan.bytes
    half = make_plan(model, (1, 3, 256, 192), torch.bfloat16)
    assert (half.bytes, half.peak_memory) == (plan.bytes // 2, plan.peak_memory // 2)


@pytest.mark.slow
def test_mixing_costs_less_than_over_the_concatenation() -> None:
    config = hf.get_config("hrnetv2_w48_seg")
    with meta_device():
        model = hf.HRNet(config, impl="reference").eval()
    plan = make_plan(model, (1, 3, 64, 64), torch.float32)
    mixed = [s for s in plan.steps if isinstance(s, ConvStep) and plan.weights[s.weight].shape[0] == 720]
    assert [plan.weights[s.weight].shape[1] for s in mixed] == [48, 96, 192, 384]


def test_shared_weights_and_reused_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            once = self.norm(self.conv(x))
            twice = F.relu(self.norm(self.conv(F.relu(once))) + once)
            return twice, {"cat": torch.cat([once, x, once], 1), "half": F.interpolate(once, scale_factor=0.5)}

    model = enliven(Twice()).eval().double()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    plan = make_plan(model, tuple(x.shape), torch.float64)
    given, wanted = evaluate(plan, tensors(model), x), model(x)
    for a, b in zip((given[0], *given[1].values()), (wanted[0], *wanted[1].values()), strict=True):
        assert relative_l2(a, b) <= EXACT
    assert_no_collision(plan)


def test_sums_of_convolutions_of_two_geometries() -> None:
    """Each geometry is merged by itself, and no term is lost or read twice."""

    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(4))
            self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1 + 2 * (k % 2), padding=k % 2) for k in range(4))

        def forward(self, x: Tensor) -> Tensor:
            a, b, c, d = (conv(stem(x)) for conv, stem in zip(self.convs, self.stems, strict=True))
            return a + b + c + d

    assert_exact(Alternating().eval().double(), torch.randn(1, 3, 6, 8, dtype=torch.float64))


def test_other_convolutions_are_called() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 5, 1, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 2, dilation=2), nn.Conv2d(8, 8, 3, 1, 1, groups=4),
        nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3, 1, 0), nn.BatchNorm2d(2), nn.ReLU6(), nn.BatchNorm2d(2),
    )  # fmt: skip
    assert_exact(enliven(model).eval().double(), torch.randn(1, 4, 9, 11, dtype=torch.float64))


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + FOREIGN


FOREIGN = torch.ones(1, 3, 8, 8)


@pytest.mark.parametrize(("model", "says"), [(Depends(), "values"), (Foreign(), "buffer"), (nn.Flatten(), "")])
def test_what_cannot_be_recorded(model: nn.Module, says: str) -> None:
    if not says:
        assert_exact(model.eval(), torch.randn(1, 3, 8, 8, dtype=torch.float64))
        return
    with pytest.raises(InputError, match=says):
        make_plan(model.eval(), (1, 3, 8, 8), torch.float32)


def test_training_mode_and_hooks() -> None:
    model = tiny()
    with pytest.raises(InputError, match="eval"):
        make_plan(copy.deepcopy(model).train(), (1, 3, 64, 64), torch.float32)
    model.get_submodule("layer1").register_forward_hook(lambda *a: None)
    with pytest.raises(InputError, match="hook"):
        make_plan(model, (1, 3, 64, 64), torch.float32)
