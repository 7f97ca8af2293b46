"""The file of a choice (`train.py --chosen`): the settings that trials have chosen, and on which images."""

from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UsageError
from common.text import read_json
from trainers.base.checkpoints import is_choice
from trainers.base.data_use import Choice

MOST_BYTES = 1 << 22


class Chosen(NamedTuple):
    """The settings as words, by key, and a record for each key and list of images (`data_use`)."""

    settings: dict[str, str]
    choices: list[Choice]


def read_chosen(file: str) -> Chosen:
    """The content of a file; nothing without a file.

    Raises:
        UsageError: it is missing or damaged.
    """
    if not file:
        return Chosen({}, [])
    if not Path(file).exists():
        raise UsageError(f"there is no {file}", "tools/study.py run writes it after the trials of its study", file)
    content: Any = read_json(file, MOST_BYTES)
    settings, choices = map(content.get, Chosen._fields) if isinstance(content, dict) else (None, None)
    named = isinstance(settings, dict) and all(isinstance(value, str) for value in settings.values())
    if not named or not isinstance(choices, list) or not all(map(is_choice, choices)):
        remedy = "delete it and start its study again (tools/study.py run), which writes it"
        raise UsageError(f"{file} is not a file of chosen settings", remedy, file)
    return Chosen(settings, choices)  # type: ignore[arg-type]
