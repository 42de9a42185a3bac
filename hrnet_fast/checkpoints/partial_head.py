"""Partial loading of a head: which layers are loaded, and which are initialised randomly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hrnet_fast.checkpoints.family import is_trunk
from hrnet_fast.errors import ConfigError, some_of

HEAD_MODES = ("exact", "keep", "drop")
Shape = tuple[int, ...]


def fit_head(
    state: dict[str, Tensor], expected: Mapping[str, Shape], head: str, notes: list[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the entries of `state` to load, and the keys of the head to initialise randomly.

    A layer is loaded with all its entries or not at all: with another number of classes neither weight nor bias is.

    Args:
        state: tensors under canonical names.
        expected: shapes of the network's state_dict.
        head: ``"exact"`` loads the whole head, ``"keep"`` the layers that fit, ``"drop"`` none.
        notes: receives the names of layers that are initialised or left out.

    Raises:
        ConfigError: `head` is another value.
    """
    if head not in HEAD_MODES:
        raise ConfigError(
            f"head={head!r} is not one of {', '.join(HEAD_MODES)}. Another kind of head needs a network of its own: "
            "build it with hf.HRNet(head=...) and fill its trunk with hf.load_backbone(model, source)."
        )
    if head == "exact":
        return state, ()
    wanted = [k for k in expected if not is_trunk(k)]
    unfit = {_layer(k) for k in wanted if head == "drop" or k not in state or tuple(state[k].shape) != expected[k]}
    unfit |= {
        _layer(k) for k in state if not is_trunk(k) and k not in expected
    }  # a bias that the network does not have
    taken = {k: v for k, v in state.items() if is_trunk(k) or (k in expected and _layer(k) not in unfit)}
    drawn = tuple(k for k in wanted if k not in taken)
    left = [k for k in state if k not in taken]
    if drawn:
        notes.append(f"head={head!r}: drawn at random: {_layer_names(drawn)}")
    if left:
        notes.append(f"head={head!r}: left out of the checkpoint: {_layer_names(left)}")
    return taken, drawn


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _layer_names(keys: tuple[str, ...] | list[str], most: int = 10) -> str:
    layers = list(dict.fromkeys(map(_layer, keys)))
    return some_of(layers, most)
