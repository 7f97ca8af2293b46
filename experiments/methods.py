"""Facts about methods for studies and the command line, without the seconds that importing the methods takes.

The registry of `trainers` has the facts. A file next to Python's compiled modules keeps them until a file in trainers/
changes.
"""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache

from common.files import write_text
from common.start import ROOT


@dataclass(frozen=True)
class Method:
    """Facts of a method: attributes of its class, as `trainers.base.PromptTrainer` describes them."""

    name: str
    learns: bool
    seeded: bool
    transfers: bool
    config_folder: str
    sections: list[str]  # its key under TRAINER, and other names of it in published YAML files
    kind: str = "inductive"


def methods() -> dict[str, Method]:
    """The registered methods by name."""
    return registered() if hasattr(sys.modules.get("trainers"), "methods") else kept_facts()


def registered() -> dict[str, Method]:
    import trainers

    known = trainers.methods()
    return {
        name: Method(name, m.learns, m.seeded, m.transfers, m.config_folder, m.sections(), m.kind)
        for name, m in known.items()
    }


@cache
def kept_facts() -> dict[str, Method]:
    """The facts in the file, which is written again if a source file has changed since."""
    folder = ROOT / "trainers"
    file = folder / "__pycache__" / "methods.json"
    files = [path for path in sorted(folder.rglob("*.py")) if path.is_file()]  # Emacs makes dangling links
    status = {str(path.relative_to(folder)): path.stat() for path in files}
    sources = {name: [each.st_mtime_ns, each.st_size] for name, each in status.items()}  # as Python compares them
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(file.read_text())
        if content["sources"] == sources:
            return {facts["name"]: Method(**facts) for facts in content["methods"]}
    found = registered()
    if sys.modules["trainers"].BROKEN:  # says so again next time
        return found
    with suppress(OSError):  # a folder that cannot be written to
        file.parent.mkdir(exist_ok=True)
        write_text(file, json.dumps({"sources": sources, "methods": [asdict(facts) for facts in found.values()]}))
    return found
