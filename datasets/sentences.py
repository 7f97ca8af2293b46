"""Sentences for each class, as language models write them, in a JSON file: `{"class name": ["sentence", ...], ...}`.

Class names are those of the dataset, with `_` or with spaces. `{}` in a sentence stands for the name.
"""

import re
from collections.abc import Iterable
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.errors import UsageError
from common.names import check_known_names, plain, printable
from common.text import read_bytes, read_json

LARGEST = 1 << 23  # bytes of a file: fifty sentences for each class of ImageNet take 5 MB
MOST, LONGEST = 100_000, 4096  # sentences, and characters of one
FORM = 'write {"class name": ["a sentence", ...], ...}'


def read(file: str | PathLike) -> dict[str, list[str]]:
    """The sentences of each class in a file, in its order, under the names that it has.

    Raises:
        UsageError: the file is missing, too large or no JSON; or as for `check`.
    """
    return check(read_json(file, LARGEST), file)


def check(content: Any, where: str | PathLike) -> dict[str, list[str]]:
    """The content of a file, or of the description of a model, from anyone.

    Raises:
        UsageError: it has another form, no sentence or too many, one that is too long, or two names for a class.
    """
    if not isinstance(content, dict) or not all(isinstance(texts, list) for texts in content.values()):
        raise UsageError(f"{where} is not a file of sentences for classes", FORM, where)
    if not 0 < sum(map(len, content.values())) <= MOST:
        raise UsageError(f"{where} has no sentences, or more than {MOST:,}", FORM, where)
    check_known_names(list(content), where)
    if len({plain(name) for name in content}) < len(content):
        raise UsageError(f"{where} has a class twice, with _ and with a space", "join its sentences", where)
    for name, texts in content.items():
        if not all(isinstance(text, str) and len(text) <= LONGEST for text in texts) or re.search(
            "[\ud800-\udfff]", "".join(texts)
        ):
            what = f"{where}: a sentence of {name!r} is not a text of at most {LONGEST:,} characters"
            raise UsageError(what, "fix or remove it", where)
    return content


def file_of(cfg: CfgNode) -> Path | None:
    """The file DATASET.SENTENCES, in which {dataset} is the dataset's name in results; None without one."""
    given = cfg.DATASET.get("SENTENCES", "").replace("{dataset}", cfg.DATASET.get("TITLE", "") or cfg.DATASET.NAME)
    return Path(given).expanduser() if given else None


def sha256_of(cfg: CfgNode) -> str:
    """The checksum of the file DATASET.SENTENCES; empty without one.

    Raises:
        UsageError: DATASET.SENTENCES_SHA256 states another one, or the file is missing or too large.
    """
    file, stated = file_of(cfg), cfg.DATASET.get("SENTENCES_SHA256", "")
    found = sha256(read_bytes(file, LARGEST)).hexdigest() if file else ""
    if stated not in ("", found):
        what = f"{file or 'DATASET.SENTENCES'} is not the file with the checksum DATASET.SENTENCES_SHA256"
        raise UsageError(what, "restore that file", file)
    return found


def read_of(cfg: CfgNode) -> dict[str, list[str]]:
    """The sentences in the file DATASET.SENTENCES; {} without one. Errors are those of `read` and `sha256_of`."""
    return read(file_of(cfg) or "") if sha256_of(cfg) else {}


def of_run(cfg: CfgNode, names: Iterable[str]) -> dict[str, list[str]]:
    """The sentences for a run on a dataset with these classes; {} without a file. Errors are those of `of_classes`."""
    sha256_of(cfg)  # checks it
    file = file_of(cfg)
    return of_classes(file, names) if file else {}


def of_classes(file: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """The sentences in a file for these classes. It prints how many of them have some.

    Raises:
        UsageError: as for `read`, or no class has any.
    """
    sentences, classes = read(file), {plain(name) for name in names}
    counts = [len(texts) for name, texts in sentences.items() if plain(name) in classes and texts]
    if not counts:
        what = f"{file} has no sentences for any class of the dataset: it has {printable(next(iter(sentences)))!r}"
        raise UsageError(what, f"give a file with classes such as {printable(min(classes))!r}", file)
    rest = "" if len(counts) == len(classes) else "; the others have the template"
    print(f"Sentences: {min(counts)} to {max(counts)} for {len(counts)} of {len(classes)} classes, from {file}{rest}")
    return sentences
