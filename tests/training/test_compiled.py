"""Compiled chains and fusions against the Python ones, bit for bit: outputs, gradients, statistics, memory formats."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Sequence

import pytest
import torch
import torch.utils.checkpoint
from tiny_networks import relative_l2
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.implementations import OperatorImplementations, describe
from hrnet_fast.ops.primitives import load_compiled
from hrnet_fast.reference.blocks import BasicBlock, Bottleneck
from hrnet_fast.training import compiled
from hrnet_fast.training.fusion_layers import FusionLayers, find_terms
from hrnet_fast.training.fusion_plan import plan_fusion
from hrnet_fast.training.matching import unit_layers
from hrnet_fast.training.recompute import recomputation_of
from hrnet_fast.training.residual_chain import run_units
from hrnet_fast.training.stacked_fusion import run_fusion
from hrnet_fast.training.tensor_list import TensorList

if not describe("cpu").usable:
    pytest.skip(describe("cpu").reason, allow_module_level=True)

CPU = OperatorImplementations("cpu", "cpu")


def units(kind: str) -> nn.Sequential:
    made = (
        [BasicBlock(8, 8, norm=nn.BatchNorm2d) for _ in range(3)]
        if kind == "basic"
        else [Bottleneck(8, 64, norm=nn.BatchNorm2d), Bottleneck(256, 64, norm=nn.BatchNorm2d)]
    )
    for module in itertools.chain.from_iterable(unit.modules() for unit in made):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return nn.Sequential(*made)


def assert_same(plain: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or (b.grad is not None and torch.equal(a.grad, b.grad)), name
    for (name, a), b in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "autocast"])
@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_chains(kind: str, memory: str, dtype: str, last: bool, training: bool) -> None:
    plain = units(kind).to(torch.float64 if dtype == "float64" else torch.float32).train(training)
    other = copy.deepcopy(plain)
    x = torch.randn(2, 8, 9, 7, dtype=next(plain.parameters()).dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    if dtype == "autocast" and kind == "basic":  # its first shortcut adds the input
        x = x.bfloat16()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", enabled=dtype == "autocast"):
        layers = [unit_layers(unit) for unit in plain]
        a = run_units([unit.read() for unit in layers], inputs[0], CPU, memory)
        chain = compiled.compile_chain([unit_layers(unit) for unit in other])
        assert chain is not None
        b = compiled.run_chains(chain.read(), [inputs[1]], memory)[0]
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    assert torch.equal(a, b)
    assert (a.dtype, a.stride()) == (b.dtype, b.stride())
    grad = torch.randn_like(a)
    a.backward(grad)
    b.backward(grad)
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert_same(plain, other)


@pytest.mark.parametrize("unused", [False, True], ids=["all used", "the second unused"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "autocast"])
@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
def test_chains_layer_by_layer(memory: str, dtype: str, training: bool, unused: bool) -> None:
    """Chains of different depths and shapes compute together what each computes alone."""
    plain = nn.ModuleList([units("basic"), units("bottleneck"), units("basic")[:1]]).train(training)
    plain[1][0].bn1.eval()  # running statistics beside a batch's
    others = copy.deepcopy(plain)
    sizes = ((9, 7), (5, 6), (3, 2))
    given = [torch.randn(2, 8, *size, dtype=torch.bfloat16 if dtype == "autocast" else None) for size in sizes]
    inputs = [[x.clone().requires_grad_() for x in given] for _ in range(2)]
    with torch.autocast("cpu", enabled=dtype == "autocast"):
        made = [[compiled.compile_chain([unit_layers(unit) for unit in chain]) for chain in chains]
                for chains in (plain, others)]  # fmt: skip
        alone = [compiled.run_chains(m.read(), [x], memory)[0] for m, x in zip(made[0], inputs[0], strict=True)]  # type: ignore[union-attr]
        joint = compiled.read_joined(made[1])
        assert joint is not None
        joint.together = True
        together = compiled.run_chains(joint, inputs[1], memory)
    grads = [torch.randn_like(out) for out in alone]
    used = [k for k in range(3) if not (unused and k == 1)]
    for outs in (alone, together):
        torch.autograd.backward([outs[k] for k in used], [grads[k] for k in used])
    for k, (a, b) in enumerate(zip(alone, together, strict=True)):
        assert torch.equal(a, b)
        first, second = inputs[0][k].grad, inputs[1][k].grad
        assert (first is None) == (second is None) == (k not in used)
        assert first is None or torch.equal(first, second)
    assert_same(plain, others)


@pytest.mark.parametrize("compiled_first", [True, False])
def test_nodes_of_both_kinds_compute_each_others_inputs_again(compiled_first: bool) -> None:
    """A chain keeps no copy of an input that the chain before it can compute, whichever of the two is compiled."""
    plain = nn.ModuleList([units("basic"), units("basic")]).train()
    other = copy.deepcopy(plain)
    inputs = [torch.randn(2, 8, 9, 7, requires_grad=True) for _ in range(2)]

    def run(chain: nn.Module, x: Tensor, in_extension: bool) -> Tensor:
        layers = [unit_layers(unit) for unit in chain]
        if in_extension:
            found = compiled.run_chains(compiled.compile_chain(layers).read(), [x], "lean")[0]  # type: ignore[union-attr]
        else:
            found = run_units([unit.read() for unit in layers], x, CPU, "lean")
        assert isinstance(found, Tensor)
        return found

    outs, kept = [], list[Tensor]()
    mixed = (compiled_first, not compiled_first)
    for modules, x, kinds in ((plain, inputs[0], (False, False)), (other, inputs[1], mixed)):
        x.data = inputs[0].data.clone()
        middle = run(modules[0], x, kinds[0])
        assert recomputation_of(middle) is not None
        assert recomputation_of(middle[:, :4]) is None
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
            outs.append(run(modules[1], middle, kinds[1]))
        assert not any(t.shape == middle.shape and torch.equal(t, middle) for t in kept)
        outs[-1].square().sum().backward()
    assert torch.equal(*outs)
    assert torch.equal(*(x.grad for x in inputs))  # type: ignore[arg-type]
    assert_same(plain, other)
    changed = run(other[0], inputs[1], compiled_first).add_(1)
    assert recomputation_of(changed) is None


@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
def test_a_forward_may_run_again_to_find_saved_tensors(memory: str) -> None:
    """A plain convolution before a fused network saves its tensors again when the network's node asks for its own."""
    stem = nn.Conv2d(3, 3, 3, padding=1)
    network = hf.HRNet(width=4, head="features", num_blocks=1, num_modules=(1, 1, 1), impl="reference").train()
    plain = nn.ModuleList([stem, network]).double()
    fast = copy.deepcopy(plain)
    hf.accelerate(fast, impl="cpu", memory=memory)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for modules in (plain, fast):
        outs = torch.utils.checkpoint.checkpoint(
            lambda x, m=modules: m[1](m[0](x)), x, use_reentrant=False, preserve_rng_state=False
        )
        torch.stack([out.square().mean() for out in outs]).sum().backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert a.grad is not None
        assert relative_l2(b.grad, a.grad) < 1e-8  # type: ignore[arg-type]


def test_compiled_chains_refuse_a_second_derivative() -> None:
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    chain = compiled.compile_chain([unit_layers(unit) for unit in units("basic")])
    out = compiled.run_chains(chain.read(), [x], "lean")[0]  # type: ignore[union-attr]
    (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_chains_that_share_a_layer_do_not_run_together() -> None:
    chain = units("basic").train()
    chains = [compiled.compile_chain([unit_layers(unit) for unit in chain]) for _ in range(2)]
    assert compiled.read_joined(chains) is None


@pytest.mark.parametrize("unused", [False, True], ids=["all targets", "the last target unused"])
@pytest.mark.parametrize("mode", [("nearest", False), ("bilinear", True)], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", ["stage2", "stage4"])
def test_fusions(stage: str, dtype: torch.dtype, last: bool, mode: tuple[str, bool], unused: bool) -> None:
    network = hf.HRNet(width=8, head="v1", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1), impl="reference")
    plain = network.get_submodule(stage)[0].to(dtype).train()  # type: ignore[index]
    other = copy.deepcopy(plain)
    count = len(plain.branches)
    maps = [torch.randn(2, 8 << k, 16 >> k, 32 >> k, dtype=dtype) for k in range(count)]
    layout = torch.channels_last if last else torch.contiguous_format
    inputs = [[x.clone(memory_format=layout).requires_grad_() for x in maps] for _ in range(2)]
    found = [find_terms(block.fuse_layers) for block in (plain, other)]
    assert not any(isinstance(terms, str) for terms in found)
    terms = [FusionLayers(rows, *mode) for rows in found]  # type: ignore[arg-type]
    assert terms[1].compiled is not None
    call = terms[1].compiled.read()
    call.together = last  # passes of several groups in one launch, as on CUDA devices
    outs = [
        run_fusion(plan_fusion(terms[0].read().terms, count, *mode, CPU), inputs[0]),
        compiled.run_fusion(call, inputs[1]),
    ]
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    grads = [torch.randn_like(a) for a in outs[0]][: count - unused]
    for one in outs:
        torch.autograd.backward(one[: count - unused], grads)
    for a, b in zip(*inputs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or (b.grad is not None and torch.equal(a.grad, b.grad))
    assert_same(plain, other)


@pytest.mark.parametrize("sizes", [[(16, 32), (8, 16)], [(15, 31), (8, 16)], [(16, 32), (7, 16)]], ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_misfits(sizes: Sequence[tuple[int, int]], exact: bool) -> None:
    network = hf.HRNet(width=8, head="v1", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1), impl="reference")
    rows = find_terms(network.get_submodule("stage2")[0].fuse_layers)  # type: ignore[index]
    assert not isinstance(rows, str)
    layers = FusionLayers(rows, "nearest", False)
    assert layers.compiled is not None
    assert layers.compiled.read().misfit(sizes, exact) == layers.read().misfit(sizes, exact)


def test_networks_run_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's chains, fusions and head are compiled on CPUs, but for statistics of several processes."""
    ran: list[str] = []
    for name in ("run_chains", "run_fusion", "run_v2_head"):
        run = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, lambda *given, run=run, name=name: ran.append(name) or run(*given))
    model = hf.HRNet(width=4, head="v2", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1), impl="cpu")
    model(torch.randn(2, 3, 64, 64))
    assert (ran.count("run_fusion"), ran.count("run_v2_head"), "run_chains" in ran) == (3, 1, True)
    synchronised = hf.accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(model), impl="cpu").eval()
    for several in (False, True):
        monkeypatch.setattr(compiled, "share_statistics", lambda norms, several=several: several)
        ran.clear()
        synchronised(torch.randn(2, 3, 64, 64))
        assert bool(ran) is not several


CHANGES = {
    "attribute": (lambda block: setattr(block[0], "stride", (2, 2)), lambda block: setattr(block[0], "stride", (1, 1))),
    "new attribute": (lambda block: setattr(block[1], "mark", 1), lambda block: delattr(block[1], "mark")),
    "mode": (lambda block: block[1].eval(), lambda block: block[1].train()),
    "hook": (
        lambda block: block[0]._forward_hooks.update({0: print}), lambda block: block[0]._forward_hooks.clear(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules(change: str) -> None:
    extension = load_compiled()
    assert extension is not None
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    states = extension.ModuleStates(block, list(block), ("_parameters", "_buffers"))
    block[0].weight = nn.Parameter(torch.zeros(3, 3, 1, 1))
    assert states.unchanged(block)  # parameters are read at every call
    CHANGES[change][0](block)
    assert not states.unchanged(block)
    CHANGES[change][1](block)
    assert states.unchanged(block)
    block.extra = 1
    assert not states.unchanged(block)


@pytest.mark.slow
def test_cycles_through_compiled_objects_are_collected() -> None:
    extension = load_compiled()
    assert extension is not None
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    block[0].owner = [block]
    chain = compiled.compile_chain([(((block[0], block[1]),), None)])
    block.cache = extension.ModuleStates(block, list(block), ("_parameters", "_buffers")), chain
    freed = weakref.ref(block)
    del block, chain
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("compiled_class", [False, True])
def test_tensor_lists_notice_what_happens_to_their_tensors(compiled_class: bool) -> None:
    extension = load_compiled()
    assert extension is not None
    trained, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2), requires_grad=False)
    buffer = torch.zeros(4)
    found = (extension.TensorList if compiled_class else TensorList)([trained, frozen, buffer])

    def state() -> tuple[bool, bool, bool]:
        return found.have_same_memory(), found.require_same_gradients(), found.have_gradients([gradient, None, None])

    gradient = trained.grad = torch.ones(3)
    assert state() == (True, True, True)
    trained.grad = torch.ones(3)  # as large, another tensor
    frozen.requires_grad_(True)
    assert state() == (True, False, False)
    trained.grad, frozen.grad = gradient, torch.ones(2)
    assert not found.have_gradients([gradient, None, None])
    frozen.grad = None
    frozen.requires_grad_(False)
    versions = [t._version for t in (trained, frozen, buffer)]
    found.increment_versions()
    assert [t._version - v for t, v in zip((trained, frozen, buffer), versions, strict=True)] == [1, 1, 1]
    assert state() == (True, True, True)
    torch.utils.swap_tensors(frozen, nn.Parameter(torch.ones(2), requires_grad=False))
    assert state() == (False, True, True)
