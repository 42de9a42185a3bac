"""Selection between weights as trained and their running averages (EMA, SWA), as each upstream's own loader does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hrnet_fast.checkpoints.inert import Inert, module_state
from hrnet_fast.errors import CheckpointError

WeightKind = Literal["raw", "ema"]
WEIGHTS = ("auto", "raw", "ema")
# Keys under which known training loops save the weights, in order of preference.
RAW_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "best_state_dict")
EMA_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema_model_state_dict",
    "model_ema_state_dict",
    "ema",
    "swa_state_dict",
    "swa_model",
    "averaged_model",
)
# Averages inside the state_dict of a full training module.
EMA_PREFIXES = ("ema_model.", "ema_network.", "ema_net.", "model_ema.", "ema.", "swa_model.", "averaged_model.")
# Counters beside the averages of torch.optim.swa_utils.AveragedModel, and of mmengine's.
AVERAGED_MODEL = "n_averaged"
COUNTERS = (AVERAGED_MODEL, "steps")
_MMCV = "ema_"


@dataclass(frozen=True)
class StoredWeights:
    """Weights inside a file: their location for messages, their mapping, and their pickled module, if any."""

    where: str
    state: Mapping[Any, Any]
    module: str = ""


@dataclass(frozen=True)
class WeightCandidates:
    """The sets of weights found at one level of a file.

    Attributes:
        raw: weights as trained.
        ema: their running average.
        default: the kind that the file's upstream loads if both exist.
        loader: name of that upstream; empty if unknown.
    """

    raw: StoredWeights | None = None
    ema: StoredWeights | None = None
    default: WeightKind = "raw"
    loader: str = ""


def stored_weights(value: Any, where: str = "") -> StoredWeights | None:
    """Return the weights of a mapping or of a pickled module (its state_dict), or None for another object."""
    state = module_state(value) if isinstance(value, Inert) else None
    if state is not None:
        return StoredWeights(where, state, repr(value))
    return StoredWeights(where, value) if isinstance(value, Mapping) else None


def _first_stored(data: Mapping[Any, Any], keys: tuple[str, ...]) -> StoredWeights | None:
    """Return the first of `keys` whose value contains tensors or mappings, or None."""
    for key in keys:
        place = stored_weights(data.get(key), repr(key))
        if place and any(isinstance(v, (Tensor, Mapping)) for v in place.state.values()):
            return place
    return None


def _timm_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    """``timm.models.load_checkpoint`` takes ``state_dict_ema``, then ``model_ema``, before the others."""
    ema = _first_stored(data, ("state_dict_ema", "model_ema"))
    if ema is None:
        return None
    return WeightCandidates(_first_stored(data, ("state_dict", "model")), ema, "ema", "timm")


def _mmengine_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    """``mmengine.hooks.EMAHook`` saves the averages in ``state_dict`` and the trained weights in ``ema_state_dict``."""
    state, other = _first_stored(data, ("state_dict",)), _first_stored(data, ("ema_state_dict",))
    if state is None or other is None or "steps" not in other.state:
        return None
    named = {str(k): v for k, v in other.state.items()}
    trained = {k.removeprefix("module."): v for k, v in named.items() if k.startswith("module.")}
    return WeightCandidates(StoredWeights(other.where, trained), state, "ema", "mmengine")


def _lightning_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    """Lightning's ``WeightAveraging`` saves the averages in ``state_dict``, the others in ``current_model_state``."""
    state, current = _first_stored(data, ("state_dict",)), _first_stored(data, ("current_model_state",))
    return WeightCandidates(current, state, "ema", "Lightning") if state and current else None


def _callback_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    """EMA callbacks keep a state_dict of their own, or, as NeMo's, a list of tensors in the order of the state_dict."""
    state, callbacks = _first_stored(data, ("state_dict",)), data.get("callbacks")
    for name, callback in callbacks.items() if state and isinstance(callbacks, Mapping) else ():
        if not isinstance(callback, Mapping):
            continue
        place, averages = _first_stored(callback, EMA_KEYS), callback.get("ema_weights")
        if place is not None:
            return WeightCandidates(
                state, StoredWeights(f"{place.where} of callback {name}", place.state), "raw", "Lightning"
            )
        if not isinstance(averages, (list, tuple)) or not averages:
            continue
        named = [(k, v) for k, v in state.state.items() if isinstance(v, Tensor)]  # type: ignore[union-attr]
        if len(named) == len(averages) and all(
            isinstance(a, Tensor) and a.shape == v.shape for a, (_, v) in zip(averages, named, strict=True)
        ):
            ema = {k: a for a, (k, _) in zip(averages, named, strict=True)}
            return WeightCandidates(state, StoredWeights(f"'ema_weights' of callback {name}", ema), "raw", "Lightning")
    return None


def _known_keys_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    raw, ema = _first_stored(data, RAW_KEYS), _first_stored(data, EMA_KEYS)
    return WeightCandidates(raw, ema) if raw or ema else None


_WRAPPED_RULES: tuple[Callable[[Mapping[Any, Any]], WeightCandidates | None], ...] = (
    _timm_weights,
    _mmengine_weights,
    _lightning_weights,
    _callback_weights,
    _known_keys_weights,
)


def find_wrapped_weights(data: Mapping[Any, Any]) -> WeightCandidates | None:
    """Return the weights under the keys of a known training loop, or None."""
    return next((candidates for rule in _WRAPPED_RULES if (candidates := rule(data))), None)


def find_flat_weights(state: Mapping[str, Tensor]) -> WeightCandidates | None:
    """Return the averages and trained weights of a flat state_dict, or None if it has no averages.

    mmcv's ``EMAHook`` registers a buffer ``ema_NAME`` for each parameter, its dots written as underscores, and
    swaps both at the end of an epoch, so a file written then has the averages under the parameters' names.
    """
    buffers = {k for k in state if k.startswith(_MMCV) and "." not in k}
    names = {k: _MMCV + k.replace(".", "_") for k in state if k not in buffers}
    if buffers & set(names.values()):
        main = {k: state[k] for k in names}
        averages = StoredWeights("the names without ema_", main)
        parameters = [k for k in names if k.endswith((".weight", ".bias"))]
        if buffers - set(names.values()) or any(names[k] not in buffers for k in parameters):
            return WeightCandidates(
                None, StoredWeights("the names without ema_; the ema_ buffers beside them do not fit", main), "ema"
            )
        trained = {k: state[names[k]] if names[k] in buffers else v for k, v in main.items()}
        raw = StoredWeights("the ema_ buffers, with which mmcv's EMAHook exchanges them before it saves", trained)
        return WeightCandidates(raw, averages, "ema", "mmcv")
    for prefix in EMA_PREFIXES:
        ema = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        ema = {k: v for k, v in ema.items() if k not in COUNTERS}
        if ema:
            rest = {k: v for k, v in state.items() if not k.startswith(prefix)}
            beside = StoredWeights(f"the keys without {prefix}", rest) if len(rest) >= len(ema) // 2 else None
            return WeightCandidates(beside, StoredWeights(f"the keys under {prefix}", ema), "raw")
    if AVERAGED_MODEL in state and any(k.startswith("module.") for k in state):
        ema = {k: v for k, v in state.items() if k != AVERAGED_MODEL}
        return WeightCandidates(None, StoredWeights(f"an AveragedModel, with its counter {AVERAGED_MODEL}", ema), "ema")
    return None


class WeightSelector:
    """Selects one kind of weights, and keeps to that kind at all levels of a file.

    Args:
        weights: one of :data:`WEIGHTS`.
        notes: receives one line on the selection.

    Raises:
        CheckpointError: `weights` is another value.
    """

    def __init__(self, weights: str, notes: list[str]) -> None:
        if weights not in WEIGHTS:
            raise CheckpointError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}.")
        self.weights = weights
        self.notes = notes
        self.selected: WeightKind | None = None

    def select(self, candidates: WeightCandidates) -> Mapping[Any, Any]:
        """Return the weights of the requested kind.

        Raises:
            CheckpointError: the file lacks them.
        """
        places: dict[WeightKind, StoredWeights | None] = {"raw": candidates.raw, "ema": candidates.ema}
        found = {kind: place for kind, place in places.items() if place is not None}
        if self.selected is not None or candidates.ema is None:  # an outer level decided, or there is one kind only
            place = found.get(self.selected or "raw") or next(iter(found.values()))
        else:
            kind = self._kind(candidates)
            if kind not in found:
                raise CheckpointError(
                    f"weights={kind!r} asks for what the checkpoint does not hold: it has averaged (EMA) weights alone "
                    f"({candidates.ema.where}). Leave weights at 'auto', or give 'ema'."
                )
            self.selected = kind
            self._note_selection(candidates, kind)
            place = found[kind]
        self.note_module(place)
        return place.state

    def note_module(self, place: StoredWeights) -> None:
        """Tell that weights were those of a pickled module."""
        if place.module:
            self.notes.append(f"a whole pickled module ({place.module}): its state_dict was read, and no code run")

    def _kind(self, candidates: WeightCandidates) -> WeightKind:
        if self.weights == "raw":
            return "raw"
        if self.weights == "ema" or candidates.raw is None:
            return "ema"
        return candidates.default

    def _note_selection(self, candidates: WeightCandidates, kind: WeightKind) -> None:
        names: dict[WeightKind, str] = {"raw": "the weights as trained", "ema": "the averaged (EMA) weights"}
        if candidates.raw is None or candidates.ema is None:
            where = candidates.ema.where if candidates.ema else ""
            self.notes.append(f"the checkpoint holds averaged (EMA) weights alone ({where}); they were taken")
            return
        places: dict[WeightKind, StoredWeights] = {"raw": candidates.raw, "ema": candidates.ema}
        other: WeightKind = "ema" if kind == "raw" else "raw"
        why = "as asked for"
        if self.weights == "auto":
            why = (
                f"as {candidates.loader}'s own loader does"
                if candidates.loader
                else "as no known upstream prefers the others"
            )
        self.notes.append(
            f"took {names[kind]} ({places[kind].where}), {why}; weights={other!r} takes {names[other]} "
            f"({places[other].where})"
        )

    def finish(self) -> None:
        """Check that averaged weights were found if they were requested.

        Raises:
            CheckpointError: they were not found.
        """
        if self.weights == "ema" and self.selected != "ema":
            raise CheckpointError(
                "weights='ema': the checkpoint has no averaged weights, only those as trained. "
                "Leave weights at 'auto', or give 'raw'."
            )
