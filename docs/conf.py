"""Sphinx's configuration of these pages: ``make docs`` builds them, and warnings are errors."""

from __future__ import annotations

import hrnet_fast

project = "hrnet_fast"
copyright = "2026, the hrnet_fast authors"
version = release = hrnet_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"hrnet_fast {release}"
exclude_patterns = ["_build"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
