"""A case: files, a command, and how it counts."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SPECIAL = ("fifo", "folder", "loop", "broken", "/dev/zero", "/dev/full", "socket", "empty")
LINKS = ("../outside", "../outside/kept", "../outside/made")


@dataclass
class Case:
    """An input of a command, which runs in a folder of its own.

    Attributes:
        program: a key of `worker.PROGRAMS`.
        argv: its arguments; `{server}` is the address of the server.
        files: content by path in the folder; one of `SPECIAL` makes another kind of file, other text a link to it.
        served: files of the server by path; `answers` of its next requests replace theirs (as `faults` of
            tests/serving.py).
        check: called after the command accepted the input; returns a fault, or an empty text.
    """

    program: str
    argv: list[str]
    files: dict[str, bytes | str] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    answers: list[bytes | str] = field(default_factory=list)
    check: Callable[[], str] = str

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                make_special(path, content)


def make_special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to({"loop": path.name, "broken": "no/such/file"}.get(kind) or os.path.abspath(kind))


Maker = Callable[[Random], Case]
KINDS: dict[str, tuple[int, Maker]] = {}  # by name: its share of the inputs, and what makes a case


def kind(name: str, share: int) -> Callable[[Maker], Maker]:
    """Register what makes the cases of a kind of input."""

    def register(make: Maker) -> Maker:
        KINDS[name] = share, make
        return make

    return register


def kind_of(number: int) -> str:
    """The kind of an input by its number; kinds alternate, so that the first few inputs have all of them."""
    order = [name for turn in range(max(share for share, _ in KINDS.values()))
             for name, (share, _) in KINDS.items() if turn < share]  # fmt: skip
    return order[number % len(order)]


def make(seed: int, number: int) -> Case:
    """The input of this seed and number, which depends on nothing else."""
    return KINDS[kind_of(number)][1](Random(f"{seed} {number}"))


def sometimes_special(rng: Random, content: bytes) -> bytes | str:
    """The content, or now and then something other than a regular file."""
    return rng.choice(SPECIAL) if rng.random() < 0.04 else content
