"""The launch of a Triton kernel on a given device."""

from __future__ import annotations

from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch ``kernel[grid](*args, **constants)`` on the device of its tensors, where Triton takes the current one."""
    # Entering torch.cuda.device costs more than the comparison. Tensors on the CPU are for Triton's interpreter.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*args, **constants)
    else:
        with torch.cuda.device(device):
            kernel[grid](*args, **constants)
