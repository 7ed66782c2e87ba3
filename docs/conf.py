"""The documentation site: `make docs`, or sphinx-build -W --keep-going -b html docs docs/_build/html."""

import sys
from pathlib import Path

import seqmix

sys.path.insert(0, str(Path(__file__).parent / "_site"))

project = "seqmix"
author = "the seqmix authors"
version = release = seqmix.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "plain_docstrings",
    "mixer_gallery",
    "package_parts",
    "command_help",
    "measured_tables",
    "playground_page",
]
exclude_patterns = ["_build", "_site", "stories/tables"]

myst_enable_extensions = ["colon_fence"]
# A link to a heading, as the Markdown of a code host makes it.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110
add_module_names = False

html_theme = "furo"
html_title = "seqmix"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
# Plain text needs no highlighting; Python and shell blocks say so.
highlight_language = "none"
