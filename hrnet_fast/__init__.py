"""hrnet_fast: HRNet for PyTorch, compatible with every upstream's checkpoints.

``import hrnet_fast as hf``; names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hrnet_fast import ops, training
    from hrnet_fast.checkpoints import (
        FAMILIES,
        convert_checkpoint,
        load_backbone,
        load_checkpoint,
        save_checkpoint,
    )
    from hrnet_fast.config import DeconvConfig, HeadConfig, HRNetConfig, NormConfig, StageConfig
    from hrnet_fast.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        HRNetFastError,
        ImplementationError,
        InputError,
        TrainingError,
    )
    from hrnet_fast.inference import Engine, flip_test, multi_scale, optimize_for_inference
    from hrnet_fast.keypoints import decode_keypoints, encode_keypoints
    from hrnet_fast.models import HRNet, create_model, get_config, list_models
    from hrnet_fast.training.accelerate import accelerate, explain, restore

_HOMES = {
    "FAMILIES": "checkpoints",
    "accelerate": "training",
    "convert_checkpoint": "checkpoints",
    "load_backbone": "checkpoints",
    "load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "DeconvConfig": "config",
    "HeadConfig": "config",
    "HRNetConfig": "config",
    "NormConfig": "config",
    "StageConfig": "config",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DatasetError": "errors",
    "HRNetFastError": "errors",
    "ImplementationError": "errors",
    "InputError": "errors",
    "TrainingError": "errors",
    "Engine": "inference",
    "HRNet": "models",
    "create_model": "models",
    "decode_keypoints": "keypoints",
    "encode_keypoints": "keypoints",
    "explain": "training",
    "flip_test": "inference",
    "get_config": "models",
    "list_models": "models",
    "multi_scale": "inference",
    "optimize_for_inference": "inference",
    "restore": "training",
}
__all__ = [
    "FAMILIES",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DeconvConfig",
    "Engine",
    "HRNet",
    "HRNetConfig",
    "HRNetFastError",
    "HeadConfig",
    "ImplementationError",
    "InputError",
    "NormConfig",
    "StageConfig",
    "TrainingError",
    "__version__",
    "accelerate",
    "convert_checkpoint",
    "create_model",
    "decode_keypoints",
    "encode_keypoints",
    "explain",
    "flip_test",
    "get_config",
    "list_models",
    "load_backbone",
    "load_checkpoint",
    "multi_scale",
    "ops",
    "optimize_for_inference",
    "restore",
    "save_checkpoint",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in ("ops", "training"):
        return importlib.import_module(f"hrnet_fast.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"hrnet_fast.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hrnet_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
