"""HTML pages from Jinja templates, and the pictures in them."""

import sys
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("page.css")  # of every page
# Fonts with Chinese, Japanese and Korean letters, of Linux, macOS and Windows.
FONTS = [
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "IPAGothic",
    "NanumGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
]


def render(template: Path, **values: Any) -> str:
    """The page: `values` are escaped, and a missing one is an error. The template may include those
    of its folder and of this one."""
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
    """Write a matplotlib figure as PNG and SVG, equal figures to equal bytes; returns the
    `data_address` of the SVG.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "inspect"}), all_letters():
        figure.savefig(file.with_suffix(".png"), dpi=150, bbox_inches="tight")
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None}, bbox_inches="tight")
    return data_address(file.with_suffix(".svg").read_bytes(), "svg+xml")


@contextmanager
def all_letters() -> Iterator[None]:
    """Within it, pictures have letters of every writing for which a font is installed; else a line
    says so once.
    """
    from matplotlib import font_manager, rc_context

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with rc_context({"font.family": families}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if any("missing from" in str(warning.message) for warning in caught):
        hint_of_fonts()


@cache
def hint_of_fonts() -> None:
    print(
        "Pictures show boxes for letters that no font has here: install the fonts Noto Sans CJK",
        file=sys.stderr,
    )


def data_address(content: bytes, kind: str) -> str:
    """An address with the content of an image, for a page that loads no other file."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
