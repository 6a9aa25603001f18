"""How the documents become a site: ``sphinx-build -W --keep-going -n docs site``.

The pages are the Markdown files of this directory, the same ones that a forge shows. What is written down twice is made
at build: the reference pages (``_ext/reference.py``), pictures (``_ext/mermaid_svg.py``), and the table of contents out
of the lists in ``index.md`` (``_ext/contents.py``). The site asks no network for anything, and can be read from files.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "Resumark"
author = copyright = "the Resumark authors"
version = release = version_of("resumark")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "contents",
    "mermaid_svg",
    "offline",
    "reference",
]
exclude_patterns = ["_ext", "_static"]

# Links between pages name headings as a forge does.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
toc_object_entries = False  # the tree is copied into every page; with each name of each module it would be slow
python_maximum_signature_line_length = 88

# Names in docstrings are checked (-n), by ``_ext/reference.py`` where Sphinx does not find them. What is let by:
# that one name is defined in several modules, where an annotation gives it without its module.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = "Resumark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
highlight_language = "none"
smartquotes = False  # two hyphens are the beginning of an option
pygments_style = "default"
pygments_dark_style = "github-dark"
