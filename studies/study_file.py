"""A study file: read it, make a `Study` of it, and check the settings of its runs as train.py
would.
"""

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from common.errors import UsageError, check_name
from common.files import check_no_link
from configs.files import read_yaml
from configs.methods import methods
from runs.arguments import parse_arguments

from .planned import Run
from .rules import choose_from, keys_from, mapping
from .spec import Study
from .variant import Variant

STUDY_KEYS = ["trainers", *(field.name for field in fields(Study) if field.name != "variants")]
TRAINER_KEYS = (
    "trainer", "config", "cross_dataset", "overrides", "datasets", "choose"
)  # fmt: skip


def load(file: Path, settings: bool = True) -> Study:
    """The study of a file. `settings` also checks the settings of its runs, which takes seconds.

    Raises UsageError if the file is unreadable, or it has an unknown key or name, or settings that
    no run can have.
    """
    try:
        study = study_from(read_yaml(file))
        examples = distinct_runs(study)
        if settings:
            check_settings(examples)
    except UsageError as error:
        raise UsageError(error.fault, error.remedy, error.where or file) from error
    return study


def study_from(content: dict) -> Study:
    """A `Study` from the content of its file. An empty value means the default."""
    given = {key: value for key, value in content.items() if value is not None}
    for key in given:
        check_name(key, STUDY_KEYS, "key")
    entries = by_name(given.pop("trainers", None))
    kinds = get_type_hints(Study)
    values = {key: convert(key, value, kinds[key]) for key, value in given.items()}
    variants = [variant_from(str(name), entry) for name, entry in entries.items()]
    return Study(tuple(variants), **values)


def by_name(trainers: Any) -> dict:
    """The trainers of a study file by name: it has a mapping, or a list of names and of `NAME:
    ...`.

    Raises UsageError if there are none, or a name is there twice.
    """
    if isinstance(trainers, dict) and trainers:
        return trainers
    if isinstance(trainers, str):
        trainers = [trainers]
    pairs: list[tuple[Any, Any]] = []
    for item in trainers if isinstance(trainers, list) else []:
        if isinstance(item, dict):
            pairs += item.items()
        else:
            pairs.append((str(item), None))
    if len(dict(pairs)) < max(1, len(pairs)):
        fault = "trainers has a name twice" if pairs else "the study has no trainers"
        raise UsageError(fault, "name each once, such as trainers: [CoOp, MPL]")
    return dict(pairs)


def convert(key: str, value: Any, kind: Any) -> Any:
    """A value of a YAML file as a field of `Study`: a single value becomes a list of one."""
    if key == "choose":
        return choose_from(value)
    if get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    if kind not in (str, Path, Path | None):
        return value
    # A dash begins an option of train.py
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise UsageError(
            f"{key} is {value!r}", "give a name" if kind is str else "give the path of a folder"
        )
    return value if kind is str else Path(os.path.expanduser(value))


def variant_from(name: str, entry: Any) -> Variant:
    """A `Variant` from `NAME:`, `NAME: CONFIG`, or `NAME: {KEY: ...}` with TRAINER_KEYS."""
    entry = entry if isinstance(entry, dict) else {"config": entry}
    for key in entry:
        check_name(key, TRAINER_KEYS, f"key of {name}")
    given = {key: value for key, value in entry.items() if value is not None}
    datasets = mapping(given.get("datasets", {}), f"datasets of {name}", "DATASET: OVERRIDES")
    of_datasets = {str(dataset): pairs(content, name) for dataset, content in datasets.items()}
    keys = keys_from(given["choose"], f"choose of {name}") if "choose" in given else None
    method, over = pair_of(name) if "trainer" not in given else (str(given["trainer"]), "")
    return Variant(
        name,
        method,
        str(given.get("config", "")),
        str(given.get("cross_dataset", "")),
        pairs(given.get("overrides", {}), name),
        of_datasets,
        over,
        keys,
    )


def pair_of(name: str) -> tuple[str, str]:
    """The method of an entry, and the entry whose run it reads: TransCLIP and CoOp of
    TransCLIP+CoOp, DPC+CoOp and CoOp of DPC+CoOp, which have the setting OVER.
    """
    first, _, over = name.partition("+")
    for method in (name, first):
        kind = methods().get(method)
        if over and kind and "OVER" in kind.Settings.schema():
            return method, over
    return name, ""


def pairs(overrides: Any, name: str) -> tuple[str, ...]:
    """KEY, VALUE, KEY, VALUE, ..."""
    items = mapping(overrides, f"overrides of {name}", "KEY: VALUE").items()
    return tuple(word for key, value in items for word in (str(key), str(value)))


def distinct_runs(study: Study) -> list[Run]:
    """A run of each variant in each protocol, of a choice one for each value; UsageError if two
    runs share a folder, or one's is a link."""
    folders = dict[Path, Variant]()
    examples = dict[tuple | str, Run]()
    trials = study.trials()
    for run in (*trials, *study.runs()):
        if other := folders.get(run.folder):
            listed = "give each seed, dataset and number of shots once"
            remedy = (
                listed if other == run.variant else "leave one out, or give one of them overrides"
            )
            raise UsageError(f"the study has the run of {run.folder} twice", remedy)
        folders[run.folder] = run.variant
        check_no_link(run.folder, study.output)
        # The settings of others are not known yet
        if run.values or not run.option("--chosen"):
            examples[run.protocol, run.variant.name, run.values] = run
            examples[run.option("--dataset-config-file")] = run
    return list(dict.fromkeys(examples.values()))


def check_settings(runs: list[Run]) -> None:
    """Check the settings of runs; overrides for a dataset are checked even if the study has no run
    on it.
    """
    from clip import available_models  # here, as these import torch
    from runs.config import setup_cfg

    for run in runs:
        for overrides in ((), *run.variant.dataset_overrides.values()):
            try:
                cfg = setup_cfg(parse_arguments([*run.arguments, *overrides]))
                backbone = cfg.MODEL.BACKBONE.NAME
                # An open_clip pair or a file may be on other machines.
                if (
                    not re.search("[.:]", backbone)
                    and not Path(os.path.expanduser(backbone)).exists()
                ):
                    check_name(
                        backbone, ["small", *available_models()], "backbone", "MODEL.BACKBONE.NAME"
                    )
                if cfg.TEST.NO_TEST:
                    raise UsageError(
                        "TEST.NO_TEST is True",
                        "leave it out, as a run of a study ends with its test",
                    )
            except ValueError as error:
                raise UsageError(f"{run.variant.name}: {error}") from error
