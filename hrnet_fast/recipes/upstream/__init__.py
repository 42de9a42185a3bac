"""Conversion of the upstream code bases' training configurations to recipes."""

from hrnet_fast.recipes.upstream.authors_files import from_authors_config
from hrnet_fast.recipes.upstream.openmmlab_files import from_openmmlab_config

__all__ = ["from_authors_config", "from_openmmlab_config"]
