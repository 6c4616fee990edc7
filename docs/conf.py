"""How `make docs` builds these pages."""

import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_gates import __version__  # noqa: E402

project = "keras_gates"
author = copyright = "The keras_gates developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"keras_gates {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings say types in words.
autodoc_typehints = "none"
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
# What a class has from Keras is in Keras' documentation.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    ("Class attributes", "params_style"),
]
