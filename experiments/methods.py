"""Facts about methods for studies and the command line, without the seconds that importing the methods takes."""

import ast
import sys
from dataclasses import dataclass
from functools import cache

from common.start import ROOT


@dataclass(frozen=True)
class Method:
    """Facts of a method: attributes of its class, as `trainers.base.PromptTrainer` describes them.

    Attributes:
        section: its key under TRAINER.
    """

    name: str
    learns: bool
    transfers: bool
    config_folder: str
    section: str


def methods() -> dict[str, Method]:
    """The registered methods by name: from their classes if these are imported, else from their source."""
    if not hasattr(sys.modules.get("trainers"), "methods") and (found := from_sources()):
        return found
    import trainers

    known = trainers.methods()
    return {name: Method(name, m.learns, m.transfers, m.config_folder, m.section()) for name, m in known.items()}


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The classes in trainers/ by name."""
    files = sorted((ROOT / "trainers").glob("*.py"))
    nodes = (node for file in files for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef))
    return {node.name: node for node in nodes}


@cache
def method_names() -> list[str]:
    """The methods in trainers/, by the decorators in their source."""
    registers = "TRAINER_REGISTRY.register()"
    return [name for name, node in classes().items() if registers in map(ast.unparse, node.decorator_list)]


def ancestry(name: str) -> list[ast.ClassDef]:
    """A class in trainers/ and those that it extends, but not the class of all methods."""
    if name == "PromptTrainer" or name not in classes():
        return []
    bases = [base for node in classes()[name].bases for base in ancestry(ast.unparse(node).rpartition(".")[2])]
    return [classes()[name], *bases]


def is_plain(name: str) -> bool:
    """Whether the source of a method has its facts as literals, and its section is its name."""
    for each in ancestry(name):
        computed = {key for key, value in assigned(each).items() if not isinstance(value, ast.Constant)}
        computed |= {node.name for node in each.body if isinstance(node, ast.FunctionDef)}
        if not computed.isdisjoint(("learns", "transfers", "config_folder", "section")):
            return False
    return True


def assigned(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """The attributes that the body of a class sets, and their values."""
    found: dict[str, ast.expr | None] = {}
    for each in node.body:
        if isinstance(each, ast.Assign):
            found |= {ast.unparse(target): each.value for target in each.targets}
        elif isinstance(each, ast.AnnAssign):
            found[ast.unparse(each.target)] = each.value
    return found


@cache
def from_sources() -> dict[str, Method]:
    """All methods; none if one of them is not plain. Read once, as a study asks for them for each of its runs."""
    return {name: from_source(name) for name in method_names()} if all(map(is_plain, method_names())) else {}


def from_source(name: str) -> Method:
    found: dict = {}
    for each in reversed(ancestry(name)):
        found.pop("config_folder", None)  # of a class alone
        found |= {key: value.value for key, value in assigned(each).items() if isinstance(value, ast.Constant)}
    return Method(
        name,
        found.get("learns", True),
        found.get("transfers", True),
        found.get("config_folder", name),
        name.upper(),
    )
