"""Sentences for each class, as language models write them, in a JSON file: `{"class name":
["sentence", ...], ...}`.

Class names are those of the dataset, with `_` or with spaces. `{}` in a sentence is replaced by the
name.
"""

import re
from collections.abc import Collection
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.errors import UsageError
from common.names import check_known_names, plain, printable, title
from common.text import read_bytes, read_json

LARGEST = 1 << 23  # bytes of a file: fifty sentences for each class of ImageNet take 5 MB
# Sentences, and characters of one
MOST = 100_000
LONGEST = 4096
SURROGATES = re.compile("[\ud800-\udfff]")  # no UTF-8 has them


def read_sentences(
    file: str | PathLike | None, names: Collection[str] = ()
) -> dict[str, list[str]]:
    """The sentences in a file, under its names of classes; {} without one.

    It prints how many of the classes with these `names` have some; UsageError if none has, and as
    for `check`.
    """
    sentences = check_sentences(read_json(file, LARGEST), file) if file else {}
    classes = {*map(plain, names)}
    counts = [len(texts) for name, texts in sentences.items() if plain(name) in classes and texts]
    if counts:
        rest = "" if len(counts) == len(classes) else "; the others have the template"
        of = f"{len(counts)} of {len(classes)} classes"
        print(f"Sentences: {min(counts)} to {max(counts)} for {of}, from {file}{rest}")
    elif sentences and classes:
        fault = (
            f"{file} has no sentences for any class of the dataset: it has "
            f"{printable(next(iter(sentences)))!r}"
        )
        raise UsageError(
            fault, f"give a file with classes such as {printable(min(classes))!r}", file
        )
    return sentences


def check_sentences(content: Any, where: str | PathLike) -> dict[str, list[str]]:
    """The content of a file, or of a model's description, from anyone; UsageError if it has another
    form or size.
    """
    lists = list(content.values()) if isinstance(content, dict) else [None]
    texts = [
        text for of_class in lists for text in (of_class if isinstance(of_class, list) else [None])
    ]
    usable = all(
        isinstance(text, str) and len(text) <= LONGEST and not SURROGATES.search(text)
        for text in texts
    )
    if not usable or not 0 < len(texts) <= MOST:
        fault = (
            f"{where} does not have 1 to {MOST:,} sentences of at most {LONGEST:,} characters "
            "for classes"
        )
        raise UsageError(fault, 'write {"class name": ["a sentence", ...], ...}', where)
    check_known_names(list(content), where)
    if len({plain(name) for name in content}) < len(content):
        raise UsageError(
            f"{where} has a class twice, with _ and with a space", "join its sentences", where
        )
    return content


def sentences_file(cfg: CfgNode) -> tuple[Path | None, str]:
    """The file DATASET.SENTENCES, in whose name {dataset} is the dataset's in results, and its
    checksum. Raises UsageError if DATASET.SENTENCES_SHA256 states another one, or the file is
    missing or too large.
    """
    given = cfg.DATASET.get("SENTENCES", "").replace("{dataset}", title(cfg))
    file = Path(given).expanduser() if given else None
    checksum = sha256(read_bytes(file, LARGEST)).hexdigest() if file else ""
    if cfg.DATASET.get("SENTENCES_SHA256", "") not in ("", checksum):
        fault = (
            f"{file or 'DATASET.SENTENCES'} is not the file with the checksum "
            "DATASET.SENTENCES_SHA256"
        )
        raise UsageError(fault, "restore that file", file)
    return file, checksum
