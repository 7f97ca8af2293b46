"""A study file: read it, make a `Study` of it, and check the settings of its runs as train.py would."""

import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from common.errors import UsageError, choose

from ..arguments import parse_arguments
from ..configs import read_yaml
from .spec import Run, Study, Variant

EXAMPLE = "see studies/small.yaml"
STUDY_KEYS = ["trainers", *(field.name for field in fields(Study) if field.name != "variants")]
PATHS = Path, Path | None  # types of fields
TRAINER_KEYS = ("trainer", "config", "cross_dataset", "overrides", "datasets")


def load(file: Path, settings: bool = True) -> Study:
    """The study of a file.

    Args:
        file: its path.
        settings: also check the settings of its runs, which takes seconds.

    Raises:
        UsageError: the file is unreadable, or it has an unknown key or name, or settings that no run can have.
    """
    try:
        study = study_from(read_yaml(file))
        examples = distinct_runs(study)
        if settings:
            check_settings(examples)
    except UsageError as error:
        raise UsageError(error.what, error.remedy, error.where or file) from error
    return study


def study_from(content: dict) -> Study:
    """A `Study` from the content of its file."""
    if "together" in content:
        del content["together"]
        print("The key together has no effect any more: each seed is a run of its own", file=sys.stderr)
    for key in content:
        choose(key, STUDY_KEYS, "key")
    entries = content.get("trainers")
    if not isinstance(entries, dict):
        raise UsageError("the study has no trainers", EXAMPLE)
    kinds = get_type_hints(Study)
    given = {key: value for key, value in content.items() if key != "trainers"}
    empty_paths = [key for key, value in given.items() if value is None and kinds.get(key) in PATHS]  # the default
    values = {key: convert(key, value, kinds[key]) for key, value in given.items() if key not in empty_paths}
    return Study(tuple(variant_from(str(name), entry) for name, entry in entries.items()), **values)


def convert(key: str, value: Any, kind: Any) -> Any:
    """A value of a YAML file as a field of `Study`: a single value becomes a list of one."""
    if get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if kind not in (*PATHS, str):
        return value
    text = "" if value is None else str(value)
    # A dash would begin an option of train.py.
    if type(value) not in (str, int, type(None)) or text.startswith("-") or (kind in PATHS and not text.strip()):
        raise UsageError(f"{key} is {value!r}", "give the path of a folder" if kind in PATHS else "give a name")
    return Path(os.path.expanduser(text)) if kind in PATHS else text


def variant_from(name: str, entry: Any) -> Variant:
    """A `Variant` from `NAME:`, `NAME: CONFIG`, or `NAME: {trainer, config, cross_dataset, overrides, datasets}`."""
    settings = entry if isinstance(entry, dict) else {"config": entry}
    for key in settings:
        choose(key, TRAINER_KEYS, f"key of {name}")
    datasets = mapping(settings.get("datasets", {}), f"datasets of {name}", "DATASET: OVERRIDES")
    return Variant(
        name,
        str(settings.get("trainer", name)),
        str(settings.get("config") or ""),
        str(settings.get("cross_dataset") or ""),
        pairs(settings.get("overrides", {}), name),
        {str(dataset): pairs(overrides, name) for dataset, overrides in datasets.items()},
    )


def pairs(overrides: Any, name: str) -> tuple[str, ...]:
    """KEY, VALUE, KEY, VALUE, ..."""
    return tuple(
        str(item) for pair in mapping(overrides, f"overrides of {name}", "KEY: VALUE").items() for item in pair
    )


def mapping(value: Any, what: str, form: str) -> dict:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a mapping of {form}, not {value!r}")
    return value


def distinct_runs(study: Study) -> list[Run]:
    """A run of each variant in each protocol; UsageError if two runs share a folder."""
    folders, examples = set(), {}
    for run in study.runs():
        if run.folder in folders:
            raise UsageError(
                f"the study has the run of {run.folder} twice", "leave one out, or give one of them overrides"
            )
        folders.add(run.folder)
        examples[run.protocol, run.variant.name] = run
    return list(examples.values())


def check_settings(runs: list[Run]) -> None:
    """Check the settings of runs; overrides for a dataset are checked even if the study has no run on it."""
    from ..configuration import setup_cfg  # here, as it imports the methods

    for run in runs:
        for overrides in ((), *run.variant.dataset_overrides.values()):
            try:
                check_backbone(setup_cfg(parse_arguments([*run.arguments, *overrides])).MODEL.BACKBONE.NAME)
            except ValueError as error:
                raise UsageError(f"{run.variant.name}: {error}") from error


def check_backbone(name: str) -> None:
    """Check a backbone's name, if it is one: not an open_clip pair or a file, which other machines may have.

    Raises:
        UsageError: no backbone has that name.
    """
    if not re.search("[.:]", name) and not Path(os.path.expanduser(name)).exists():
        from clip import available_models

        choose(name, ["small", *available_models()], "backbone", "MODEL.BACKBONE.NAME")
