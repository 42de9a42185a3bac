"""The class of accelerated networks with the reference's structure, whose stem and head are no modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from hrnet_fast.reference.heads import Output
from hrnet_fast.reference.heads.classification import ClassificationHead
from hrnet_fast.reference.heads.dense import V2Head
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.training import structure_cache, unsupported
from hrnet_fast.training.fused_modules import ChainLayers, FusedModule
from hrnet_fast.training.joined_sequences import JoinedSequences, can_join, find_joined
from hrnet_fast.training.matching import Layers
from hrnet_fast.training.v2_head import V2HeadLayers, run_v2_head


class NetworkLayers(NamedTuple):
    """The stem's rows and an HRNetV2 head's layers, or why they are not fused; None for any other head."""

    stem: ChainLayers | str
    head: V2HeadLayers | str | None


class FusedNetwork(FusedModule, HRNetReference):
    """A network: its stem is one chain, and an HRNetV2 head is computed without concatenation.

    Sequences between the stages and in a classification head that do not depend on each other run as one call.
    """

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
        reason = unsupported.v2_head(head)
        return NetworkLayers(stem, reason or V2HeadLayers(head, self.config.align_corners))

    def _stem(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        chain = unsupported.call((x,), self.fused_settings.implementation) or self._layers().stem
        out = chain if isinstance(chain, str) else self.fused_settings.run(chain, x)
        if isinstance(out, str):
            self.note_call(out)
            return super()._stem(x)
        self.note_call(None)
        return None, out

    def _joinable(self) -> dict[str, nn.ModuleList]:
        """Lists of modules of which those that are no identity may execute as one call, by name."""
        names = [f"transition{k}" for k in range(1, len(self.config.stages))]
        names += ["incre_modules"] if isinstance(self._head, ClassificationHead) else []
        return {name: getattr(self, name) for name in names}

    def _find_joined(self) -> dict[str, JoinedSequences | None]:
        implementation = self.fused_settings.implementation
        groups = {k: [m for m in part if not isinstance(m, nn.Identity)] for k, part in self._joinable().items()}
        return {name: find_joined(own, implementation) for name, own in groups.items()}

    def _run_joined(self, name: str, xs: Sequence[Tensor]) -> list[Tensor] | None:
        if not can_join(xs, self.fused_settings.implementation):
            return None
        joined = structure_cache.cached(
            self, lambda: [m for part in self._joinable().values() for m in part.modules()], self._find_joined,
            structure_cache.JOINED,
        )[name]  # fmt: skip
        return None if joined is None else joined.run(xs)

    def _transition(self, k: int, features: list[Tensor]) -> list[Tensor]:
        layers = getattr(self, f"transition{k}")
        xs = [features[min(i, len(features) - 1)] for i in range(len(layers))]
        new = [i for i, layer in enumerate(layers) if not isinstance(layer, nn.Identity)]
        # First of the calls: compilers and tracers cannot follow the structure cache.
        if len(new) < 2 or unsupported.call(features, self.fused_settings.implementation):
            return super()._transition(k, features)
        outs = self._run_joined(f"transition{k}", [xs[i] for i in new])
        if outs is None:
            return super()._transition(k, features)
        made = dict(zip(new, outs, strict=True))
        return [made[i] if i in made else layer(x) for i, (layer, x) in enumerate(zip(layers, xs, strict=True))]

    def _apply_head(self, features: list[Tensor], size: tuple[int, int]) -> Output:
        implementation = self.fused_settings.implementation
        # First of the calls: compilers and tracers cannot follow the structure cache.
        reason = unsupported.call(features, implementation)
        layers = None if reason else self._layers().head
        if isinstance(layers, V2HeadLayers):
            reason = unsupported.dtypes(features, layers.has_dtype_of)
            if reason is None:
                logits = run_v2_head(layers, features, implementation.operators(features[0]))
                return self._head.finish(logits, size)  # type: ignore[attr-defined]
        if reason is not None and isinstance(self._head, V2Head):
            self.note_call(reason)
        if reason is None and isinstance(self._head, ClassificationHead):
            widened = self._run_joined("incre_modules", features)
            if widened is not None:
                return self._head.sum_and_classify(self, iter(widened))
        return super()._apply_head(features, size)
