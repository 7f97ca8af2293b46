"""HTML pages from Jinja templates, and the pictures in them."""

import warnings
from base64 import b64encode
from pathlib import Path
from typing import Any


def render(template: Path, **values: Any) -> str:
    """The page: `values` are escaped, and a missing one is an error. The template may include those of its folder and
    of this one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only pages need it

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def save_picture(figure: Any, file: Path) -> str:
    """Write a matplotlib figure as PNG and SVG, equal figures to equal bytes; returns the `data_address` of the SVG."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "inspect"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have letters that the font lacks
        figure.savefig(file.with_suffix(".png"), dpi=150)
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    return data_address(file.with_suffix(".svg"))


def data_address(svg: Path) -> str:
    """An address with the content of an SVG, for a page that loads no other file."""
    return f"data:image/svg+xml;base64,{b64encode(svg.read_bytes()).decode()}"
