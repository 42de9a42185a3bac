"""What users would run a network with instead: ONNX Runtime, OpenVINO and Inductor, each in its best mode.

A peer is a function from (model, input) to a call. Whatever it needs before it can answer is its set-up, and timed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]


def eager(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Channels-last weights and input, under autocast in half precision."""
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def call() -> Any:
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return model(x)

    return call


def inductor(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """``torch.compile`` with frozen weights."""
    from torch._inductor import config

    plain = eager(model, x, dtype)
    compiled = torch.compile(plain)

    def call() -> Any:
        with config.patch(freezing=True):
            return compiled()

    call()
    return call


def onnx_file(model: nn.Module, x: Tensor) -> Path:
    path = Path(tempfile.mkdtemp()) / "network.onnx"
    torch.onnx.export(
        model, (x,), path, input_names=["image"], dynamo=True, external_data=False, verbose=False
    )  # fmt: skip
    return path


def onnx_runtime(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """All graph optimisations, as many threads as PyTorch has; float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx_file(model, x), options, providers=["CPUExecutionProvider"])
    given = x.numpy()
    return lambda: [torch.from_numpy(out) for out in session.run(None, {"image": given})]


def openvino(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Compiled for latency, as many threads as PyTorch has, in the precision asked for."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
    }
    request = core.compile_model(core.read_model(onnx_file(model, x)), "CPU", settings).create_infer_request()
    given = x.numpy()

    def call() -> Any:
        return [torch.from_numpy(out.copy()) for out in request.infer({0: given}).values()]

    return call


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def available(dtype: torch.dtype, slow: bool) -> dict[str, Callable[[nn.Module, Tensor, torch.dtype], Call]]:
    """Return the peers that can run here in `dtype`; `slow` includes those that compile for minutes."""
    found: dict[str, Callable[[nn.Module, Tensor, torch.dtype], Call]] = {"eager": eager}
    exportable = installed("onnx") and installed("onnxscript")
    if exportable and installed("onnxruntime") and dtype == torch.float32:
        found["onnxruntime"] = onnx_runtime
    if exportable and installed("openvino"):
        found["openvino"] = openvino
    if slow:
        found["inductor"] = inductor
    return found
