"""Renders HTML pages that contain their images: of the demonstration and of the benchmarks."""

from __future__ import annotations

import base64
import importlib.util
from typing import Any

from hrnet_fast.errors import InputError


def check_packages(extra: str) -> None:
    """Check that the packages that draw and render reports are installed; `extra` is the optional extra that has them.

    Raises:
        InputError: one is missing.
    """
    absent = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"the report needs {' and '.join(absent)}: pip install 'hrnet-fast[{extra}]'.")


def render_html(template: str, **values: Any) -> str:
    """Render a Jinja template. Values are escaped; the filter ``png_url`` turns PNG bytes into a data URL."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["png_url"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return environment.from_string(template).render(**values)
