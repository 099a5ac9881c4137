"""Sphinx's settings for the book. `make book` lays out the sources and runs it: see build.py."""

import os
import sys
import tomllib
from pathlib import Path


HERE = Path(__file__).parent
ROOT = Path(os.environ["MINILLAMA_ROOT"])
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "book")]

from build import repository, slug  # noqa: E402


pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project, author = "minillama", "The minillama authors"
release = pyproject["version"]
copyright = "the minillama authors, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx-mathjax-offline",  # MathJax from files of its own: the book asks no other server
    "glossary_links",
    "docstrings",
]
nb_execution_mode = "off"  # the outputs are those that CI compares
nb_ipywidgets_js = {}  # no widget's JavaScript from elsewhere
nb_merge_streams = True
nb_render_markdown_format = "commonmark"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_heading_slug_func = slug
myst_dmath_double_inline = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
add_module_names = False
# a chapter's links to files of the repository are the repository's affair
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type", "misc.highlighting_failure"]
suppress_warnings += [
    "config.cache",
    "ref.python",
]  # a function; a name of several

html_theme = "sphinx_book_theme"
html_title = "minillama: Llama 3.1 from scratch"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_show_sphinx = False
html_theme_options = {
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if url := repository():
    html_theme_options |= {
        "repository_url": url,
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
