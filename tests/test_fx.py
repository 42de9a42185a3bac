"""torch.fx: symbolic tracing of every head, feature extraction and quantisation."""

from __future__ import annotations

import operator
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.fx
from tiny_networks import ALL_HEADS, assert_same, image, maps, relative_l2, tiny, two_stages

import hrnet_fast as hf

TRAINED: list[tuple[str, dict[str, Any]]] = [
    *((head, {}) for head in ALL_HEADS),
    ("v1", {"upsample": "bilinear", "upsample_to": "scale_then_target"}),
    ("v2", {"upsample_logits": True, "align_corners": True}),
    ("features", {"feature_location": "incre", "out_indices": (0, 2)}),
    ("c", {"norm_kind": "frozen"}),
    ("v1", {"downsample": "bilinear", "fusion": "product"}),
]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("head", "options"), TRAINED)
def test_one_graph_for_all_sizes(head: str, options: dict[str, Any]) -> None:
    model = hf.restore(tiny(head, **options))
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for size in ((64, 64), (96, 160)):
            x = image(*size, batch=2)
            assert_same(traced(x), model(x))


def test_a_graph_takes_odd_sizes_where_the_network_does() -> None:
    model = hf.restore(tiny("v2"))
    with torch.no_grad():
        assert_same(torch.fx.symbolic_trace(model)(image(77, 93)), model(image(77, 93)))


@pytest.mark.parametrize(
    ("head", "x", "says"),
    [
        ("v1", image(64, 72), "multiples of 32"),
        ("v1", image(64, 64)[0], r"add the batch dimension with x\[None\]"),
        ("v2", image(64, 64, channels=4), r"accepted is \[N, 3, H, W\]"),
        ("v2p", image(32, 32), "5 levels need"),
    ],
)
def test_a_graph_refuses_what_its_network_refuses(head: str, x: torch.Tensor, says: str) -> None:
    traced = torch.fx.symbolic_trace(hf.restore(tiny(head)))
    with pytest.raises(hf.InputError, match=says):
        traced(x)


@pytest.mark.parametrize("head", ["v1", "v2", "c"])
def test_accelerated_networks_trace_as_their_plain_modules(head: str) -> None:
    fast = tiny(head)
    plain = hf.restore(tiny(head))
    traced = torch.fx.symbolic_trace(fast)
    kinds = [(node.op, node.target) for node in traced.graph.nodes]
    assert kinds == [(node.op, node.target) for node in torch.fx.symbolic_trace(plain).graph.nodes]
    with torch.no_grad():
        assert_same(traced(image(64, 64)), plain(image(64, 64)))
        fast(image(64, 64))
    assert hf.explain(fast).fast > 0, "tracing changes nothing of the network itself"


def test_training_through_a_graph_is_training() -> None:
    model, other = hf.restore(tiny("v2")).train(), hf.restore(tiny("v2")).train()
    traced = torch.fx.symbolic_trace(other)
    x = image(64, 64, batch=2)
    for net in (model, traced):
        maps(net(x))[0].square().mean().backward()
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    for (name, p), (_, q) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(p, q), name


def test_graphs_are_pickled_and_written_as_code() -> None:
    traced = torch.fx.symbolic_trace(hf.restore(two_stages("v2")))
    again = pickle.loads(pickle.dumps(traced))
    with torch.no_grad():
        assert_same(again(image(64, 64)), traced(image(64, 64)))


def test_features_are_extracted_by_node() -> None:
    """What torchvision's create_feature_extractor does: outputs at chosen nodes, all behind them left out."""
    model = hf.restore(tiny("v1"))
    traced = torch.fx.symbolic_trace(model)
    wanted = [n for n in traced.graph.nodes if n.op == "call_module" and str(n.target) == "bn2"]
    last = [n for n in traced.graph.nodes if n.op == "call_module" and str(n.target).startswith("stage2.0.branches")]
    (output,) = [n for n in traced.graph.nodes if n.op == "output"]
    traced.graph.erase_node(output)
    traced.graph.output((wanted[0], last[-1]))
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    seen: dict[str, torch.Tensor] = {}
    for name in ("bn2", str(last[-1].target)):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
    with torch.no_grad():
        model(image(64, 96))
        given = traced(image(64, 96))
    assert not hasattr(traced, "stage4")
    # The ReLU behind bn2 works in place, in model and graph alike.
    assert torch.equal(given[1], seen[str(last[-1].target)])
    assert given[0].shape == seen["bn2"].shape


def test_shape_propagation_reads_every_node() -> None:
    from torch.fx.passes.shape_prop import ShapeProp

    traced = torch.fx.symbolic_trace(hf.restore(tiny("ocr")))
    ShapeProp(traced).propagate(image(64, 64))
    resized = [n for n in traced.graph.nodes if n.op == "call_function" and n.target.__name__ == "resize"]
    assert resized
    assert {tuple(n.meta["tensor_meta"].shape[2:]) for n in resized} == {(16, 16)}
    assert not any(n.target is operator.eq for n in traced.graph.nodes), "no choice was left to the graph"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["v1", "v2"])
def test_quantisation_by_fx(head: str) -> None:
    if not {"x86", "fbgemm", "onednn", "qnnpack"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this PyTorch has no quantised kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the module's age
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        engine = torch.backends.quantized.engine
        model, x = hf.restore(two_stages(head)), image(64, 64)
        prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (x,))
        prepared(x)
        quantised = convert_fx(prepared)
        with torch.no_grad():
            assert relative_l2(quantised(x), model(x)) < 0.05
            assert relative_l2(quantised(image(96, 64)), model(image(96, 64))) < 0.1
    assert any("quantized" in type(m).__module__ for m in quantised.modules())
