"""How the documentation is built: ``make docs``.

The source folder is the checkout itself, so that a link between two files leads to the same place
on a page of the documentation and in the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "nmcompile"
author = "The nmcompile authors"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("benchmarks/README.md", "benchmarks/results/*.md", "tools/nullgpu/README.md"),
]
# What is no page, so that nobody walks through it either.
exclude_patterns = [".*", "build", "dist", "nmcompile", "tests", "**/__pycache__", "docs/_*"]
highlight_language = "text"

myst_enable_extensions = ["colon_fence", "attrs_block"]
myst_heading_anchors = 3

# Every reference leads somewhere, but for types that have no page: those of other projects, which
# would need a network to be looked up, and our own under the names of the modules that they are in.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!nmcompile\.\w+$).*")]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Conditions", "params_style"), ("Decision", "params_style")]

html_theme = "furo"
html_title = "nmcompile"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "to_first_page.html"}
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
