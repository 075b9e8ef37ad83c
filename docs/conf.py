"""How Sphinx builds the documentation: `make docs`."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
version = release = PROJECT["version"]
author = PROJECT["authors"][0]["name"]
copyright = author

# Of kernels, which have no widgets, so that progress bars warn of it.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# Every page whose front matter says `file_format: mystnb`, and every notebook, is executed anew.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240

myst_enable_extensions = ["deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put code between single backticks
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# A type that no page of this site describes is an error, with these exceptions.
nitpicky = True
nitpick_ignore_regex = [
    # Those of other packages: their inventories are on the network, and a build does without it.
    ("py:.*", r"(collections|jax|numpy|optax|optuna|pathlib|ray|rich)\..*"),
    # Errors of `compare`, which its docstring describes.
    ("py:exc", "Busy|NoCost|OtherStudy|WorkerLost"),
    # Those that signatures pass from one function to the next, and whose parts a user does not need.
    (
        "py:class",
        r"hypergrad_search\.from_function\.FunctionProblem|hypergrad_search\.hyperparameters\.Static"
        r"|hypergrad_search\.losses\.LeftOut|hypergrad_search\.training\.floats\.FloatState"
        r"|hypergrad_search\.hypergradient\.(algorithms\.(_State|Moving)|continuing\.Stretch|in_floats\.End)"
        r"|hypergrad_search\.search\.((strategy|explore_descend)\.State|variants\.Slope)"
        r"|hypergrad_search\.search\.(sign_steps\.SignRegion|quasi_newton\.QuasiNewtonRegion)"
        r"|hypergrad_studies\.(rivals\.Setting|tasks\.TrainingTask|spending\.Budget|records\.Study|budgets\.Interval)"
        r"|tuple\[float",  # of a type that autodoc splits at a comma
    ),
]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False}


def _readable(app: Any, what: str, name: str, of: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """Return a signature whose defaults are Python: objects and factories become `...`."""
    return None if signature is None else (re.sub(r"= <[^,]*?>(?=, |\))", "= ...", signature), returns)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _readable)
