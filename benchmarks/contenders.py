"""Who executes a network: this package, and what users would pick instead, each in its best mode.

A contender is a function from (model, input, dtype) to a call. Whatever it needs before it can answer is its set-up,
and timed. Models come in evaluation mode on the input's device, in float32, and are the contender's own to change.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hrnet_fast as hf

Call = Callable[[], Any]
Make = Callable[[nn.Module, Tensor, torch.dtype], Call]
SINGLE, HALF = (torch.float32,), (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Contender:
    """Attributes: what it takes part in, and `slow` if it compiles for minutes (then it must be asked for)."""

    make: Make
    dtypes: tuple[torch.dtype, ...] = SINGLE + HALF
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow: tuple[str, ...] = ()  # on these devices
    needs: tuple[str, ...] = ()

    def unavailable(self, device: str, dtype: torch.dtype, asked: bool) -> str | None:
        """Return why it cannot take part, or None."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        if device not in self.devices:
            return f"not on {device}"
        if dtype not in self.dtypes:
            return f"not in {str(dtype).removeprefix('torch.')}"
        if device in self.slow and not asked:
            return "compiles for minutes here: ask for it with --contenders"
        return None


def _plain(model: nn.Module, x: Tensor) -> Call:
    def call() -> Any:
        with torch.inference_mode():
            return model(x)

    return call


def eager(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """As the model comes: NCHW, weights and input in `dtype`."""
    return _plain(model.to(dtype), x.to(dtype))


def channels_last(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Weights and input in `dtype`, channels-last."""
    model = model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _plain(model, x.to(dtype=dtype, memory_format=torch.channels_last))


def timm_network(name: str) -> Contender:
    """timm's own network of the same weights, which it has under the same names: weights and input in `dtype`,
    channels-last.
    """

    def make(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
        import timm

        outputs = model.get_submodule("classifier").out_features
        theirs = timm.create_model(name, num_classes=outputs).eval()
        theirs.load_state_dict(model.state_dict())
        return channels_last(theirs.to(x.device), x, dtype)

    return Contender(make, needs=("timm",))


def amp(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Weights in float32 under autocast, channels-last."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype):
            return model(x)

    return call


def compiled(mode: str | None, freezing: bool = False) -> Make:
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
    """Export once for all batch sizes of a network and image size, by tracing: the newer exporter takes ten times as
    long, and the files run alike.
    """
    key = f"{hash(tuple(p.double().sum().item() for p in model.parameters()))} {tuple(x.shape[1:])}"
    if key not in _EXPORTED:
        path = Path(tempfile.mkdtemp(prefix="hrnet_fast_")) / "network.onnx"
        with warnings.catch_warnings():  # of the exporter's age, and of sizes that are traced as constants
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


def engine(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """``hrnet_fast.optimize_for_inference``; :func:`engine_of` finds the engine in the call."""
    return functools.partial(hf.optimize_for_inference(model, x, dtype=dtype), x)


def engine_of(call: Call | None) -> hf.Engine | None:
    """Return the engine that a call uses, if it does."""
    found = call.func if isinstance(call, functools.partial) else None
    return found if isinstance(found, hf.Engine) else None


# The first is the baseline of errors and of ratios.
INFERENCE: dict[str, Contender] = {
    "eager channels-last": Contender(channels_last),
    "eager": Contender(eager),
    "eager AMP": Contender(amp, HALF),
    "compile": Contender(compiled(None), slow=("cpu",)),
    "compile reduce-overhead": Contender(compiled("reduce-overhead"), devices=("cuda",)),
    "compile max-autotune": Contender(compiled("max-autotune"), devices=("cuda",), slow=("cuda",)),
    "compile freezing": Contender(compiled(None, freezing=True), devices=("cpu",), slow=("cpu",)),
    "ONNX Runtime": Contender(onnx_runtime, SINGLE, ("cpu",), needs=("onnx", "onnxruntime")),
    "OpenVINO": Contender(
        openvino, (*SINGLE, torch.bfloat16), ("cpu",), needs=("onnx", "openvino")
    ),
    "hrnet_fast engine": Contender(engine),
}  # fmt: skip


def copies(model: nn.Module, make: Make, x: Tensor, dtype: torch.dtype) -> Callable[[], Call]:
    """A contender's set-up on a copy of the model; the copy is not part of it."""
    own = copy.deepcopy(model)
    return lambda: make(own, x, dtype)
