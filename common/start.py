"""The start of a command: what it needs must be installed."""

import gc
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .errors import closest
from .names import printable
from .removed import RENAMED, instead_of
from .version import INSTALLED, ROOT, __version__


@contextmanager
def required_packages(extra: str = "") -> Iterator[None]:
    """Import a command's packages within this: one line and exit status 2 if one is not installed.

    `extra` is the requirements file of packages that not every user needs.
    """
    # Torch and open_clip leave a million objects, through which each collection walks: 1.5 of 4.4
    # seconds
    gc.disable()
    imported = len(sys.modules)
    try:
        yield
        if (
            len(sys.modules) > imported
        ):  # else garbage of a running program would never be collected
            gc.freeze()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if (ROOT / package).exists() or (ROOT / f"{package}.py").exists():  # a bug of this project
            raise
        fault = f"the package {package} is not installed for {sys.executable}"
        print(f"error: {fault}: {installation(extra)}", file=sys.stderr)
        sys.exit(2)
    except (ImportError, OSError, MemoryError) as error:
        first: BaseException = error
        while first.__cause__:
            first = first.__cause__
        # Not a library: a bug of this project
        if isinstance(first, ImportError) and ".so" not in str(first):
            raise
        reason = " ".join(str(first).split()) or "the memory is full"
        print(
            f"error: cannot load a library ({reason}): is the memory limited (`ulimit -v`)?",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.enable()


def installation(extra: str) -> str:
    """How to install what a requirements file names; empty for what every command needs."""
    if INSTALLED:
        name = extra.removeprefix("requirements-").removesuffix(".txt")
        also = f", with its extra [{EXTRAS.get(name, name)}]" if extra else ""
        return f"install modular-prompt-learning again{also}"
    if extra:
        return f"run `{sys.executable} -m pip install -r {extra}` in {ROOT}"
    there = "`pip install -r requirements.txt` there"
    return f"run `make setup` in {ROOT} and use its .venv/bin/python, or {there}"


EXTRAS = {"export": "onnx", "cluster": "ray"}  # of an installation, by its requirements file


class Parser(ArgumentParser):
    """Arguments of a command, options by their full names. Wrong ones end it with one line and exit
    status 2.
    """

    completes = False
    command = ""  # in front of its removed options in common/removed.py, if others may have them

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # `--se 1 2` or `--deb` would be understood in part
        self.allow_abbrev = False
        # The options of all commands are the last ones of --help
        if "--debug" not in self._option_string_actions:
            self.add_argument(
                "--version", action="version", version=f"Modular Prompt Learning {__version__}"
            )
            self.add_argument(
                "--debug",
                action="store_true",
                help="show the traceback of an error (also: MPL_DEBUG=1)",
            )
        # A shell asks for the options of `mpl COMMAND`; argcomplete calls this again
        if "_ARGCOMPLETE" in os.environ and not Parser.completes:
            from argcomplete import autocomplete

            Parser.completes = True
            autocomplete(self)
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self.renamed(word) for word in words], namespace)

    def renamed(self, word: str) -> str:
        """A word of the command line; of an option that has a new name, that name."""
        name, equals, value = word.partition("=")
        new = RENAMED.get(name, "")
        if new not in self._option_string_actions:
            return word
        print(f"{name} is called {new} now, and the next version refuses it", file=sys.stderr)
        return new + equals + value

    def error(self, message: str) -> NoReturn:
        message = printable(message)
        remedy = f"see {self.prog} --help"
        if message.startswith("unrecognized") and (option := re.search(r"(?<!\S)-[^ =]+", message)):
            known = [name for name in self._option_string_actions if name.startswith("--")]
            begun = [name for name in known if name.startswith(option[0])]
            near = begun[0] if len(begun) == 1 else closest(option[0], known)
            remedy = f"did you mean {near}?" if near else remedy
            remedy = instead_of(f"{self.command} {option[0]}") or instead_of(option[0]) or remedy
        if value := re.match(r"argument (\S+): invalid choice: '([^']*)'", message):
            remedy = instead_of(" ".join(value.groups())) or remedy
        self.exit(2, f"error: {message}: {remedy}\n")


def path(text: str) -> Path:
    """The argparse type of a path. An empty one would be the current folder."""
    if not text.strip():
        raise ArgumentTypeError("expected a path (. for the current folder)")
    return Path(os.path.expanduser(text))


def of_project(text: str) -> str:
    """The argparse type of a file that may be one of the project, such as
    configs/datasets/eurosat.yaml: its path there, unless the user has such a file.
    """
    there = ROOT / text
    return str(there) if text and not os.path.exists(text) and there.is_file() else text


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """The argparse type of integers from `least` to `most`."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            accepted = (
                f"expected an integer >= {least}" if most is None else f"expected {least} to {most}"
            )
            raise ArgumentTypeError(f"{accepted}, got {text!r}")
        return int(text)

    return number


def between(low: float, high: float, words: str, unit: str = "") -> Callable[[str], float]:
    """The argparse type of numbers above `low` and below `high`, which errors call `words`. A unit
    may follow the number.
    """

    def number(text: str) -> float:
        try:
            value = float(text.removesuffix(unit))
        except ValueError:
            value = low
        if not low < value < high:
            raise ArgumentTypeError(f"expected {words}, got {text!r}")
        return value

    return number


def number_of_share(text: str) -> tuple[float, bool]:
    """The number in a percentage or a share, and whether it is a share."""
    words = "a percentage such as 5, or a share such as 0.05"
    value = between(0, 100, words, "%")(text)
    return value, value < 1 and not text.endswith("%")


def percent(text: str) -> float:
    """The argparse type of a percentage: 5, 5% and the share 0.05 are the same."""
    value, is_share = number_of_share(text)
    return 100 * value if is_share else value


def share(text: str) -> float:
    """The argparse type of a share: 0.05, 5 and 5% are the same."""
    value, is_share = number_of_share(text)
    if text == "1":
        raise ArgumentTypeError("1 may be 1% or all: write 1% or 0.01, or less than all")
    return value if is_share else value / 100


any_seed = at_least(0, 2**32 - 1)  # the argparse type of a seed, within the limits of NumPy
