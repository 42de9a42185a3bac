"""The public networks: one class, and a registry of named variants."""

from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.models.registry import create_model, get_config, list_models

__all__ = ["HRNet", "create_model", "get_config", "list_models"]
