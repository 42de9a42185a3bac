"""Stands in for ``mmcv._ext``, the compiled operators that mmcv-lite lacks; mmdet and mmpose import it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn


class _Extension(ModuleType):
    """Has every operator by name; calling one that is not defined here raises."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*_args: Any, **_options: Any) -> NoReturn:
            raise NotImplementedError(f"mmcv._ext.{name} is a compiled operator of mmcv; mmcv-lite has none.")

        return operator


def install() -> None:
    """Make ``import mmcv.ops`` work; call it before the first import of mmpose, mmseg or mmdet."""
    if "mmcv._ext" not in sys.modules:
        extension = _Extension("mmcv._ext")
        extension.__spec__ = ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = extension
