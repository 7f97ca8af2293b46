"""HTML pages from Jinja templates."""

from pathlib import Path
from typing import Any


def render(template: Path, **values: Any) -> str:
    """The page: `values` are escaped, and a missing one is an error. The template may include others of its folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only pages need it

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
