"""Peers of the inference benchmarks: this package and its alternatives, each with its best settings.

Setting a peer up includes everything before its first result, and is timed. Models are in evaluation mode, in float32
and on the input's device; a peer may change its model.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.demo.contenders import Prepare, autocast, channels_last, eager, engine
from hrnet_fast.measure import Call

SINGLE, HALF = (torch.float32,), (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Peer:
    """One execution of a network, and where it can run.

    Attributes:
        prepare: from a model, an input and a dtype to a call.
        dtypes, devices: those that it supports.
        slow: devices on which it compiles for minutes; there it runs on request only.
        needs: packages that it imports.
    """

    prepare: Prepare
    dtypes: tuple[torch.dtype, ...] = SINGLE + HALF
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def unavailable(self, device: str, dtype: torch.dtype, asked: bool) -> str | None:
        """Return why it cannot run, or None."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        if device not in self.devices:
            return f"not on {device}"
        if dtype not in self.dtypes:
            return f"not in {str(dtype).removeprefix('torch.')}"
        if device in self.slow and not asked:
            return "compiles for minutes here: ask for it with --compile or --contenders"
        return None


def timm_network(name: str) -> Peer:
    """timm's network with the same weights, channels-last; timm has the authors' parameter names."""

    def make(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
        import timm

        outputs = model.get_submodule("classifier").out_features
        theirs = timm.create_model(name, num_classes=outputs).eval()
        theirs.load_state_dict(model.state_dict())
        return channels_last(theirs.to(x.device), x, dtype)

    return Peer(make, needs=("timm",))


def compiled(mode: str | None, freezing: bool = False) -> Prepare:
    """``torch.compile``, channels-last, weights in `dtype`."""

    def make(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
        from torch._inductor import config

        torch._dynamo.reset()
        model = model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = x.to(dtype=dtype, memory_format=torch.channels_last)
        fast = torch.compile(model, mode=mode)

        def call() -> Any:
            with torch.no_grad(), config.patch(freezing=freezing):
                return fast(given)

        return call

    return make


_EXPORTED: dict[str, Path] = {}


def onnx_file(model: nn.Module, x: Tensor) -> Path:
    """Export a network once for all batch sizes. Traced: the newer exporter takes ten times as long for equal speed."""
    key = f"{hash(tuple(p.double().sum().item() for p in model.parameters()))} {tuple(x.shape[1:])}"
    if key not in _EXPORTED:
        path = Path(tempfile.mkdtemp(prefix="hrnet_fast_")) / "network.onnx"
        with warnings.catch_warnings():  # deprecation of the exporter, sizes traced as constants
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (x[:1],), str(path), input_names=["image"], dynamic_axes={"image": {0: "batch"}}, dynamo=False
            )
        _EXPORTED[key] = path
    return _EXPORTED[key]


def onnx_runtime(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """All graph optimisations, as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(onnx_file(model, x)), options, providers=["CPUExecutionProvider"])
    given = x.numpy()
    return lambda: [torch.from_numpy(out) for out in session.run(None, {"image": given})]


def openvino(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Compiled for latency and for the input's shape, as many threads as PyTorch has, in the precision asked for."""
    import openvino as ov

    core = ov.Core()
    read = core.read_model(onnx_file(model, x))
    read.reshape(list(x.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
    }
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    given = x.numpy()

    def call() -> Any:
        return [torch.from_numpy(out.copy()) for out in request.infer({0: given}).values()]

    return call


# The first is the baseline of errors and of ratios.
PEERS: dict[str, Peer] = {
    "eager channels-last": Peer(channels_last),
    "eager": Peer(eager),
    "eager AMP": Peer(autocast, HALF),
    "compile": Peer(compiled(None), slow=("cpu",)),
    "compile reduce-overhead": Peer(compiled("reduce-overhead"), devices=("cuda",)),
    "compile max-autotune": Peer(compiled("max-autotune"), devices=("cuda",), slow=("cuda",)),
    "compile freezing": Peer(compiled(None, freezing=True), devices=("cpu",), slow=("cpu",)),
    "ONNX Runtime": Peer(onnx_runtime, SINGLE, ("cpu",), needs=("onnx", "onnxruntime")),
    "OpenVINO": Peer(
        openvino, (*SINGLE, torch.bfloat16), ("cpu",), needs=("onnx", "openvino")
    ),
    "hrnet_fast engine": Peer(engine),
}  # fmt: skip


def copied_setup(model: nn.Module, prepare: Prepare, x: Tensor, dtype: torch.dtype) -> Callable[[], Call]:
    """Return a peer's set-up on a copy of the model; the time of copying is not part of it."""
    own = copy.deepcopy(model)
    return lambda: prepare(own, x, dtype)
