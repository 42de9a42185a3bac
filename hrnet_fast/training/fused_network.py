"""The class of accelerated networks with the reference's structure, whose stem and head are no modules of their own."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from hrnet_fast.reference.heads import Output
from hrnet_fast.reference.heads.dense import V2Head
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.training import structure_cache, unsupported
from hrnet_fast.training.fused_modules import ChainLayers, FusedModule
from hrnet_fast.training.matching import Layers
from hrnet_fast.training.v2_head import run_v2_head


class NetworkLayers(NamedTuple):
    """The stem's rows and an HRNetV2 head's layers, or why they are not fused; None for any other head."""

    stem: ChainLayers | str
    head: nn.Module | str | None


class FusedNetwork(FusedModule, HRNetReference):
    """A network: its stem is one chain, and an HRNetV2 head is computed without concatenation."""

    def unsupported_reasons(self) -> list[str]:
        return [part for part in self._layers() if isinstance(part, str)]

    def partly_fused(self) -> bool:
        return (
            any(not isinstance(part, str) for part in self._layers() if part is not None) and not self.last_call_reason
        )

    def _inner(self) -> list[nn.Module]:
        head = self._head
        parts = [self.conv1, self.bn1, self.conv2, self.bn2, self.relu]
        return parts + (list(self.get_submodule(head.name).modules()) if isinstance(head, V2Head) else [])

    def _layers(self) -> NetworkLayers:
        return structure_cache.cached(self, self._inner, self._find_layers)

    def _find_layers(self) -> NetworkLayers:
        rows = ((self.conv1, self.bn1, self.relu), (self.conv2, self.bn2, self.relu))
        reason = next((r for row in rows if (r := unsupported.conv_norm_relu(*row))), None)
        stem = reason or ChainLayers(*(Layers((row[:2],), None) for row in rows))
        if not isinstance(self._head, V2Head):
            return NetworkLayers(stem, None)
        head = self.get_submodule(self._head.name)
        return NetworkLayers(stem, unsupported.v2_head(head) or head)

    def _stem(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        chain = unsupported.call(x, self.fused_settings.implementation) or self._layers().stem
        out = chain if isinstance(chain, str) else self.fused_settings.run(chain, x)
        if isinstance(out, str):
            self.last_call_reason = out
            return super()._stem(x)
        self.last_call_reason = None
        return None, out

    def _apply_head(self, features: list[Tensor], size: tuple[int, int]) -> Output:
        implementation = self.fused_settings.implementation
        # First of the calls: compilers and tracers cannot follow the structure cache.
        reason = next((r for x in features if (r := unsupported.call(x, implementation))), None)
        layers = None if reason else self._layers().head
        if isinstance(layers, nn.Module):
            weights = [m.weight for m in layers.children() if isinstance(m, nn.Conv2d)]
            reason = unsupported.dtypes(features, weights)
            if reason is None:
                operators = implementation.operators(features[0])
                logits = run_v2_head(layers, features, self.config.align_corners, operators)
                return self._head.finish(logits, size)  # type: ignore[attr-defined]
        if reason is not None and isinstance(self._head, V2Head):
            self.last_call_reason = reason
        return super()._apply_head(features, size)
