"""Sphinx configuration; `make docs` builds the pages."""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent / "_ext"), str(pathlib.Path(__file__).parents[1])]

import jaxkd  # noqa: E402 - the checkout is on the path first

project = "jaxkd"
author = "the jaxkd authors"
version = release = jaxkd.__version__
html_theme = "furo"
html_title = "jaxkd"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_pages"]
exclude_patterns = ["_ext", "methods/_table.md"]
nitpicky = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Included result files have tables and headings of their own level.
suppress_warnings = ["myst.header"]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_member_order = "bysource"
