"""Accelerated sequences that do not depend on each other, as one call whose elementwise passes share launches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.implementations import RequestedImplementation
from hrnet_fast.training import branch_streams, compiled, unsupported
from hrnet_fast.training.batch_norm import share_statistics
from hrnet_fast.training.fused_modules import FusedSequence
from hrnet_fast.training.matching import altered


def can_join(xs: Sequence[Tensor], implementation: RequestedImplementation) -> bool:
    """Whether sequences on these maps may run as one call.

    On a CPU each runs alone, and its maps stay in the caches; so it does on a stream of its own in a captured step.
    """
    x = xs[0]
    if not x.is_cuda or branch_streams.active() or any(other.device != x.device for other in xs):
        return False
    return compiled.has_compiled_passes(implementation.operators(x))


class JoinedSequences:
    """Sequences that consist of one compiled chain each.

    Args:
        sequences: the modules.
        memory: what their chains keep for backward.
    """

    def __init__(self, sequences: Sequence[Any], memory: str) -> None:
        self._sequences, self._memory = sequences, memory
        chains = [sequence.parts()[0].chain for sequence in sequences]
        self._chains = [chain.compiled for chain in chains]
        self._promotes = any(chain.promotes for chain in chains)
        self._synchronised = [norm for chain in chains for norm in chain.synchronised]

    def run(self, xs: Sequence[Tensor]) -> list[Tensor] | None:
        """Return each sequence's result for its own map, [N, C, H, W]; or None, with nothing run.

        The maps have no :func:`unsupported.call` reason, and :func:`can_join`.
        """
        if (self._promotes and unsupported.promotion(xs[0])) or share_statistics(self._synchronised):
            return None
        call = compiled.read_joined(self._chains)
        # One node for all would differentiate frozen ones too.
        if call is None or (torch.is_grad_enabled() and not call.require_grad_alike(xs)):
            return None
        outs = compiled.run_chains(call, xs, self._memory)
        if isinstance(outs, str):
            return None
        for sequence in self._sequences:
            sequence.note_call(None)
        return outs


def find_joined(modules: Iterable[nn.Module], implementation: RequestedImplementation) -> JoinedSequences | None:
    """Return modules as they stand as one, or None where one of them has to run alone."""
    sequences, memories = [], set[str]()
    for module in modules:
        if not isinstance(module, FusedSequence) or altered([module]):
            return None
        if getattr(module, "_compiled_call_impl", None) is not None:  # by nn.Module.compile
            return None
        parts, own = module.parts(), module.fused_settings
        chain = parts[0].chain if len(parts) == 1 else ""
        if isinstance(chain, str) or chain.compiled is None or own.implementation != implementation:
            return None
        sequences.append(module)
        memories.add(own.memory_of(chain))
    return JoinedSequences(sequences, memories.pop()) if len(memories) == 1 and len(sequences) > 1 else None
