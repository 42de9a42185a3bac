"""``EngineModule``: an engine as an ``nn.Module``, to be put in the place of the network it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hrnet_fast.errors import InputError

if TYPE_CHECKING:
    from hrnet_fast.inference.engine import Engine


class EngineModule(nn.Module):
    """Calls an engine, and has no parameters and no buffers: the engine holds folded copies of its model's.

    Made by :meth:`Engine.module <hrnet_fast.Engine.module>`. It is in evaluation mode and on the engine's device for
    good. What would need parameters raises :class:`~hrnet_fast.errors.InputError`: ``train()``, a move to another
    device or dtype, ``state_dict()`` of any model that contains it, loading keys under its name, an input that
    requires a gradient, copies and pickles.

    Attributes:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """Return what the engine returns for `x`, in new tensors."""
        if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad:
            raise InputError(
                "EngineModule: the input requires a gradient, and an engine gives none; call it under torch.no_grad(), "
                "or use the model itself."
            )
        return self.engine(x)

    def train(self, mode: bool = True) -> EngineModule:
        """Accept evaluation mode only."""
        if mode:
            raise InputError(
                "EngineModule: an engine computes as in evaluation mode and has no parameters to train; put the model "
                "back in its place before train()."
            )
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EngineModule:
        """Accept what leaves a tensor of the engine where it is; ``to``, ``cuda``, ``half`` and others call this."""
        own = torch.empty(0, dtype=self.engine.result_dtype, device=self.engine.device)
        moved = fn(own)
        if (moved.device, moved.dtype) != (own.device, own.dtype):
            raise InputError(
                f"EngineModule: asked to move to {moved.device} and {moved.dtype}; this engine stays on {own.device} "
                f"with outputs of {own.dtype}: make another one from the model there."
            )
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise InputError(
            f"EngineModule: state_dict() of a model with an engine at {prefix.rstrip('.') or 'its top'!r}, which has "
            "no parameters: a file would lack them. Save the model that the engine was made from, or Engine.save(path)."
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        given = next((key for key in state_dict if key.startswith(prefix)), None)
        if given is not None:
            raise InputError(
                f"EngineModule: {given!r} given; an engine has no parameters to load. Load it into the model that the "
                "engine was made from, and call engine.refresh()."
            )

    def extra_repr(self) -> str:
        """Return dtype and device of the engine."""
        return f"{str(self.engine.dtype).removeprefix('torch.')} on {self.engine.device}, no parameters"
