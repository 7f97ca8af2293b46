"""Python source whose imports of some top-level names are those of a package that holds them.

The wheel holds this project's folders under one name (setup.py). A user's file with a method has
their names in the clone.
"""

import ast
import re
from collections.abc import Collection

from .version import INSTALLED

PACKAGE = "modular_prompt_learning"
# The folders of the project that the package holds
FOLDERS = ["clip", "common", "configs", "datasets", "fit", "inference", "measures", "runs"]
FOLDERS += ["scripts", "studies", "tools", "trainers"]
NAMES = [*FOLDERS, "dassl", "train"]


def of_user(source: bytes) -> bytes:
    """The source of a file of the user, whose imports of this project work here."""
    return renamed(source.decode(), PACKAGE, NAMES).encode() if INSTALLED else source


def with_commands(text: str) -> str:
    """A text about the commands of the clone, `python tools/fit.py`, with those of an installation,
    `mpl fit`. An installation has no docs/.
    """
    text = re.sub(r"(?<![\w/])docs/(\w+)\.md\b", r"the page \1 of the documentation", text)
    text = re.sub(r"(?:python )?\btools/(\w+)\.py\b", r"mpl \1", text)
    return re.sub(r"\bpython train\.py\b", "mpl train", text)


def renamed(source: str, package: str, names: Collection[str]) -> str:
    """The source with `clip.x` imported as `package.clip.x`, if `clip` is one of the names.

    Only import statements change; each stays on its lines. Raises SyntaxError.
    """
    lines = source.splitlines(keepends=True)
    # The last statement of a line first: what stands before it keeps its place
    statements = sorted(
        (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)),
        key=lambda node: (node.lineno, node.col_offset),
        reverse=True,
    )
    for node in statements:
        line = node.lineno - 1
        text = lines[line]
        start = node.col_offset
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and is_one(node.module or "", names)
        ):
            place = text.index(node.module or "", start)
            lines[line] = f"{text[:place]}{package}.{text[place:]}"
        if isinstance(node, ast.Import) and any(is_one(one.name, names) for one in node.names):
            new = "; ".join(imported(one, package, names) for one in node.names)
            lines[line] = text[:start] + new + text[node.end_col_offset :]
    return "".join(lines)


def is_one(module: str, names: Collection[str]) -> bool:
    """Whether a module is one of these top-level names, or inside one."""
    return module.partition(".")[0] in names


def imported(alias: ast.alias, package: str, names: Collection[str]) -> str:
    """The statement for one name of an `import`."""
    top, dot, _ = alias.name.partition(".")
    if not is_one(alias.name, names):
        return f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
    if alias.asname:
        return f"import {package}.{alias.name} as {alias.asname}"
    module = f"import {package}.{alias.name}; " if dot else ""
    return f"{module}from {package} import {top}"
