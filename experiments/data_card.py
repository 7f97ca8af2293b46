"""The data-use card of results.json: which images a run has seen in which phase, and where its settings come from."""

import json
from argparse import Namespace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from datasets import title
from trainers.base.data_use import Choice, Phase, fit_phase, list_digest, phase

from .configuration import flatten, given_options, read_chosen, settings_in
from .predictions import tested_images

TESTS = "tests.jsonl"  # a line for each test that ended
MOST_TESTS = 1 << 20  # lines


def note_test(cfg: CfgNode, trainer: Any, results: dict[str, float]) -> None:
    """Add a test to the list of all tests in the output folder, those of earlier starts among them."""
    split, items = tested_images(cfg, trainer)
    line = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "split": split,
        "images": len(items),
        "sha256": list_digest(items, cfg.DATASET.ROOT),
        "accuracy": next(iter(results.values())),
    }
    with open(Path(cfg.OUTPUT_DIR, TESTS), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def tests_of(folder: Path, sha256: str) -> int:
    """How many tests of the images with this checksum have ended in an output folder."""
    file = folder / TESTS
    if not file.is_file():
        return 0
    with open(file, encoding="utf-8", errors="replace") as lines:
        return sum(f'"sha256": "{sha256}"' in line for line, _ in zip(lines, range(MOST_TESTS), strict=False))


def origins(args: Namespace, cfg: CfgNode) -> dict[str, list[str]]:
    """The settings that are not defaults, by where they come from; a later origin replaces an earlier one."""
    known, found = flatten(cfg), dict[str, str]()
    for file in filter(None, (args.dataset_config_file, args.config_file)):
        path = Path(file)
        found |= dict.fromkeys(flatten(settings_in(file)), f"{path.parent.name}/{path.name}")
    found |= dict.fromkeys(cfg.BY_DATASET, "BY_DATASET")
    found |= dict.fromkeys([*given_options(args), *args.opts[::2]], "command line")
    found |= dict.fromkeys(read_chosen(args.chosen).settings, "a choice")
    kept = {key: origin for key, origin in found.items() if key in known}
    return {origin: sorted(key for key in kept if kept[key] == origin) for origin in dict.fromkeys(kept.values())}


def learned_from(args: Namespace, cfg: CfgNode, trainer: Any) -> list[Phase] | None:
    """The records of the images behind the prompts that a run tests, before it trains; None if that is not known."""
    fit = getattr(trainer, "inherited_phases", None if args.eval_only else [])
    if fit is None or args.eval_only or not trainer.get_model_names():
        return fit
    return [*fit, fit_phase(cfg, title(cfg), trainer.dm.dataset, trainer.dm.num_classes)]


def data_use(
    cfg: CfgNode, trainer: Any, fit: list[Phase] | None, choices: list[Choice] | None, settings: dict[str, list[str]]
) -> dict[str, Any]:
    """The card of a run that has ended.

    Args:
        cfg: of the run.
        trainer: after its test.
        fit: from `learned_from`.
        choices: the records of what was chosen on images, from `run.choices_of`; None if that is not known.
        settings: from `origins`.

    Returns:
        - `kind`: of the method (`data_use.METHOD_KINDS`); None for a trainer of another project
        - `fit`, `choose`: as given
        - `test`: the record of the tested images, with `evaluations`, how many tests of them ended in this output
          folder; None without a test
        - `settings`: the origins of settings that are not defaults
    """
    test = None
    if trainer.evaluator.results:
        split, items = tested_images(cfg, trainer)
        test = phase(cfg, title(cfg), split, items, trainer.dm.num_classes)
        test["evaluations"] = tests_of(Path(cfg.OUTPUT_DIR), test["sha256"])
    if chosen := list(dict.fromkeys(choice["what"] for choice in choices or () if choice["what"] != "epoch")):
        settings = settings | {"a choice": chosen}
    return {"kind": getattr(trainer, "kind", None), "fit": fit, "choose": choices, "test": test, "settings": settings}
