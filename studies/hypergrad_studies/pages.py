"""Pages made from the templates of this package."""

from importlib import metadata
from typing import Any

import jinja2

_PACKAGES = ("hypergrad-search", "jax", "optuna", "ray", "numpy", "scipy", "matplotlib")


def render(template: str, **values: Any) -> str:
    """Return the page that a template and its values make; it needs no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hypergrad_studies", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values, versions=_versions())


def _versions() -> str:
    """Return the versions of those of `_PACKAGES` that are installed, as text."""
    installed = []
    for name in _PACKAGES:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(installed)
