"""Accepted values of configuration fields, and checks of them that raise ConfigError."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hrnet_fast.errors import ConfigError, shown

BlockKind = Literal["basic", "bottleneck"]
NormKind = Literal["bn", "syncbn", "gn", "frozen"]
HeadKind = Literal["features", "v1", "v1h", "v2", "v2p", "ocr", "face", "higher", "c", "ci", "cii"]
UpsampleMode = Literal["nearest", "bilinear"]
UpsampleTo = Literal["scale", "target", "scale_then_target"]

EXPANSION: dict[str, int] = {"basic": 1, "bottleneck": 4}
HEAD_ALIASES: dict[str, HeadKind] = {
    "pose": "v1",
    "seg": "v2",
    "segmentation": "v2",
    "seg_ocr": "ocr",
    "detection": "v2p",
    "hrfpn": "v2p",
    "classification": "c",
    "landmarks": "face",
    "bottom_up": "higher",
}
CLASSIFICATION_HEADS = ("c", "ci", "cii")
# Head kinds that use a field of HeadConfig.
READ_BY: dict[str, tuple[str, ...]] = {
    "num_outputs": ("v1", "v1h", "v2", "ocr", "face", "higher", *CLASSIFICATION_HEADS),
    "kernel_size": ("v1", "v1h", "v2", "face", "higher"),
    "mixing_kernel": ("v2", "face", "ocr"),
    "mixing_channels": ("v2", "face", "ocr"),
    "conv_bias": ("v1h", "v2", "face", "ocr", "c"),
    "output_bias": ("v2", "face"),
    "attention_bias": ("ocr",),
    "upsample_logits": ("v1", "v1h", "v2", "face", "ocr", "higher"),
    "out_indices": ("features",),
    "feature_location": ("features",),
    "channels": ("v2p", "ocr"),
    "key_channels": ("ocr",),
    "num_levels": ("v2p",),
    "pyramid_stride": ("v2p",),
    "pyramid_norm": ("v2p",),
    "pyramid_pool": ("v2p",),
    "deconvs": ("higher",),
    "tags": ("higher",),
    "ocr_outputs": ("ocr",),
    "dropout": ("v2", "face", "ocr", *CLASSIFICATION_HEADS),
}


def check_one_of(owner: str, name: str, value: object, accepted: tuple[object, ...]) -> None:
    if isinstance(value, bool) or not any(isinstance(value, type(one)) and value == one for one in accepted):
        raise ConfigError(f"{owner}: {name}={shown(value)} is not one of {', '.join(map(repr, accepted))}.")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(owner: str, **values: int) -> None:
    for name, value in values.items():
        if not is_int(value) or value < 1:
            raise ConfigError(f"{owner}: {name}={shown(value)} must be an integer of at least 1.")


def check_fields(config: Any, *, from_zero: tuple[str, ...] = (), apart: tuple[str, ...] = ()) -> None:
    """Check the fields of a configuration that are annotated as ``int``, ``bool`` or a ``Literal`` of accepted values.

    Args:
        config: a dataclass.
        from_zero: integers that may be 0; others are at least 1.
        apart: fields that the caller checks.
    """
    kind: Any = type(config)
    owner = kind.__name__
    for name, hint in _hints(kind).items():
        value = getattr(config, name)
        if name in apart:
            continue
        if get_origin(hint) is Literal:
            check_one_of(owner, name, value, get_args(hint))
        elif hint is bool and not isinstance(value, bool):
            raise ConfigError(f"{owner}: {name}={shown(value)} must be True or False.")
        elif hint is int:
            least = 0 if name in from_zero else 1
            if not is_int(value) or value < least:
                raise ConfigError(f"{owner}: {name}={shown(value)} must be an integer of at least {least}.")


_hints = functools.cache(get_type_hints)


def is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def as_tuple(owner: str, name: str, value: object) -> tuple[Any, ...]:
    """Return a sequence as a tuple; raise ConfigError for other types."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise ConfigError(f"{owner}: {name}={shown(value)} must be a sequence, one entry for each.")
    return tuple(value)
