"""Strict comparison of a canonical state_dict with the network that loads it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from hrnet_fast.checkpoints.family import is_trunk
from hrnet_fast.config import HRNetConfig
from hrnet_fast.errors import CheckpointError
from hrnet_fast.reference import HRNetReference
from hrnet_fast.skip_init import meta_device

COUNTER = "num_batches_tracked"
SHARED = "values in the memory of another layer"


@functools.lru_cache(maxsize=8)
def expected_shapes(config: HRNetConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the canonical keys and shapes of a network, without allocating it; loading asks several times."""
    with meta_device():
        return MappingProxyType({k: tuple(v.shape) for k, v in HRNetReference(config).state_dict().items()})


def check_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    *,
    family: str,
    drawn: Collection[str] = (),
    advice: str = "",
) -> None:
    """Compare the keys, shapes and types of a canonical state_dict with those of a network.

    All batch counters may be absent together (files older than PyTorch 0.4.1 have none), and so may the keys in
    `drawn`. `advice` ends the message where the trunk fits.

    Raises:
        CheckpointError: a key is missing, unexpected or mis-shaped, or an entry is no dense floating tensor.
    """
    odd = tuple(k for k, v in state.items() if not (_is_counter(v) if k.endswith(COUNTER) else _is_weight(v)))
    if odd:
        raise CheckpointError(
            f"{len(odd)} entries are no dense floating tensors (quantised, sparse or meta?): {', '.join(odd[:6])}. "
            "Convert them to floating point first; tensors on the meta device have no values to load.",
            unexpected=odd,
        )
    no_counters = not any(k.endswith(COUNTER) for k in state)
    needed = [k for k in expected if k not in drawn and not (no_counters and k.endswith(COUNTER))]
    missing = tuple(k for k in needed if k not in state)
    unexpected = tuple(k for k in state if k not in expected)
    mismatched = tuple(
        (k, tuple(state[k].shape), shape) for k, shape in expected.items() if k in state and state[k].shape != shape
    )
    if not (missing or unexpected or mismatched):
        return
    lines = [f"The checkpoint (read as family {family!r}) does not fit the network that its keys describe."]
    lines += _report_lines("missing", missing)
    lines += _report_lines("unexpected", unexpected)
    lines += _report_lines("mis-shaped", tuple(f"{k}: {list(a)} given, {list(b)} needed" for k, a, b in mismatched))
    if any(map(is_trunk, (*missing, *unexpected, *(k for k, _, _ in mismatched)))):
        lines.append(
            "Nothing was loaded. Fetch a complete file, or drop entries that are not HRNet's and pass the mapping."
        )
    else:
        lines.append(
            "Nothing was loaded. The trunk fits: head='keep' takes the layers of the head that fit and draws the "
            "others at random, head='drop' draws the whole head, part='backbone' loads the trunk alone, and "
            "load_backbone(model, source) fills the trunk of a model that you have built."
        )
        lines += [advice] if advice else []
    raise CheckpointError("\n".join(lines), missing=missing, unexpected=unexpected, mismatched=mismatched)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)


def _is_weight(tensor: Tensor) -> bool:
    return _is_dense(tensor) and tensor.is_floating_point()


def _is_counter(tensor: Tensor) -> bool:
    """Whether a counter is integral; it is a floating tensor after ``state_dict`` was converted to another dtype."""
    return _is_dense(tensor) and (not tensor.is_floating_point() or bool((tensor == tensor.round()).all()))


def suspicious_values(state: Mapping[str, Tensor]) -> list[str]:
    """Return notes on non-finite values and on layers that share memory (HRNet ties no weights)."""
    odd = tuple(k for k, v in state.items() if v.is_floating_point() and not _finite(v))
    first: dict[int, str] = {}
    shared = tuple(k for k, v in state.items() if v.numel() and first.setdefault(v.data_ptr(), k) != k)
    lines = _report_lines("NaN or infinite values in", odd) + _report_lines(SHARED, shared)
    return [line.strip() for line in lines]


def _finite(tensor: Tensor) -> bool:
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # eight-bit types have no isfinite
    return bool(torch.isfinite(wide).all())


def _report_lines(what: str, names: tuple[str, ...], most: int = 10) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return [f"  {what} ({len(names)}): {', '.join(names[:most])}{more}"]
