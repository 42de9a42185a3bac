"""Shared by the operators' tests: the error budget, implementations and their devices, Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hrnet_fast.implementations import describe

ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


def param(impl: str) -> Any:
    """A parameter for an implementation; one skip per file names those that this machine cannot run."""
    state, device = describe(impl), impl in ("cuda", "triton")
    marks = [pytest.mark.device] * device
    # By its interpreter Triton would be usable without a device; those runs have tests of their own.
    if device and not torch.cuda.is_available():
        marks.append(pytest.mark.unavailable("torch sees no CUDA device"))
    elif not state.usable:
        marks.append(pytest.mark.unavailable(state.reason))
    return pytest.param(impl, marks=marks)


CPU, CUDA, TRITON = param("cpu"), param("cuda"), param("triton")
IMPLS = ["reference", TRITON]
FOLDER = Path(__file__).parent
# Kernels depend on the width of a value and on the layout: float32 in both layouts, each half format in one.
LAYOUTS = [
    pytest.param(dtype, last, id=f"{dtype}-{'last' if last else 'contiguous'}")
    for dtype, last in (
        (torch.float64, False), (torch.float32, False), (torch.float32, True), (torch.bfloat16, True),
        (torch.float16, False),
    )
]  # fmt: skip
# What of torch.library.opcheck depends on layouts and values; derivatives and their capture are registered once.
FORMS = ("test_schema", "test_faketensor")
EVERY = (*FORMS, "test_autograd_registration", "test_aot_dispatch_dynamic")


def device_of(impl: str) -> str:
    return "cuda" if impl in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def widest(impl: str) -> torch.dtype:
    """The widest dtype of an implementation."""
    return torch.float32 if impl == "triton" else torch.float64


def compiler_for(impl: str) -> str:
    """Inductor for one implementation of each device; for a further one, the same capture without generated code.

    To Inductor an operator is opaque and the implementation one of its arguments: the code around it does not change.
    """
    return "aot_eager" if impl == "cpu" else "inductor"


class Case(Protocol):
    def to(self, dtype: torch.dtype) -> Case: ...
    def leaves(self) -> list[Tensor]: ...
    def run(self, impl: str) -> Tensor: ...
    def oracle(self) -> Tensor:
        """Without activation, composed in another way than the reference."""

    def plain(self) -> Tensor:
        """The reference without activation."""

    def gate(self, out: Tensor) -> Tensor:
        """One where the activation of a result let its value pass, zero elsewhere, float64."""


def distance(a: Tensor, exact: Tensor) -> float:
    norm = exact.double().norm().item()
    return (a.double() - exact.double()).norm().item() / (norm or 1.0)


def within_budget(case: Case, impl: str) -> None:
    """Error against the oracle at most twice the reference's own in the same dtype, plus one rounding."""
    exact_case = case.to(torch.float64)
    out = case.run(impl)
    dtype = out.dtype
    reference_case = exact_case.to(dtype)
    # The oracle takes the activation's decision from the result under test: at a value that rounding moved across
    # zero, neither side of the gradient is wrong.
    gate = case.gate(out.detach())
    grad = torch.randn_like(out)
    exact, reference, plain = exact_case.oracle(), reference_case.run("reference"), reference_case.plain()
    activated = exact * exact_case.gate(exact.detach())

    assert out.shape == exact.shape
    # In float64 the oracle rounds like what it judges: a few roundings of difference are neither's fault.
    floor = (32 if dtype == torch.float64 else 2) * ROUNDING[dtype]
    assert distance(out, activated) <= 2 * distance(reference, activated) + floor
    given = torch.autograd.grad(out, case.leaves(), grad)
    wanted = torch.autograd.grad(exact, exact_case.leaves(), grad.double() * gate)
    allowed = torch.autograd.grad(plain, reference_case.leaves(), grad * gate.to(dtype))
    for g, w, a, leaf in zip(given, wanted, allowed, case.leaves(), strict=True):
        assert g.dtype == leaf.dtype
        assert g.shape == leaf.shape
        # On a CPU the library's own bfloat16 weight gradient holds garbage where maps are one column wide.
        own = distance(a, w) if a.isfinite().all() else 0.0
        assert distance(g, w) <= 2 * own + floor


def on_cpu(case: Any) -> Any:
    """The same values on the CPU, whose convolution is direct: a device's may spread one NaN over a whole tile."""
    moved = {
        f.name: tree_map(lambda t: t.detach().cpu() if isinstance(t, Tensor) else t, getattr(case, f.name))
        for f in fields(case)
    }
    return replace(case, **moved)


def copies(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The same values in another dtype, each a leaf."""
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def interpreted(program: str) -> None:
    """Run Triton in its interpreter, in a process of its own: kernels are interpreted or not when they are defined."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parity held" in done.stdout
