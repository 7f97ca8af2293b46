"""The key `merge` of a trainer in a study: the models of its seeds become one."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from common.files import check_no_link, checksum, write_json
from common.lock import locked
from common.names import title
from common.text import read_json
from common.version import source
from measures.results import RESULTS_FILE, read_results
from runs.how import OF_SUMS, How

from .planned import Run, RunSequence
from .rules import digest

LARGEST = 24 << 20  # bytes of a config.json, which has the names of all classes


@dataclass(frozen=True)
class Merge:
    """A merged model of a study.

    Attributes:
        how: of `tools/merge.py`.
        members: the training runs of its models.
        folder: of the model, of its settings and of its log.
        tests: the runs that test it.
    """

    how: How
    members: tuple[Run, ...]
    folder: Path
    tests: RunSequence

    @property
    def model(self) -> Path:
        return model_of(self.folder)

    @property
    def file(self) -> Path:
        """Of the settings that its tests have; written when the model is complete."""
        return file_of(self.folder)

    @property
    def arguments(self) -> list[str]:
        """Of tools/merge.py."""
        models = [str(run.folder) for run in self.members]
        return [*models, "--to", str(self.model), "--how", str(self.how)]

    @property
    def is_ready(self) -> bool:
        """Whether the runs of its models are finished."""
        return all(read_results(run.folder) is not None for run in self.members)


def model_of(folder: Path) -> Path:
    return folder / "model"


def file_of(folder: Path) -> Path:
    return folder / "choice.json"


def name_of(how: How, folders: Sequence[Path], output: Path) -> str:
    """The folder of a merged model, by what is merged."""
    places = [str(folder.relative_to(output)) for folder in folders]
    return f"{how}_{digest([str(how), places])}".replace(":", "_")


def make(merge: Merge, output: Path) -> None:
    """Merge the models, unless that is done. Raises UsageError if they cannot be merged."""
    from runs.merge import main

    check_no_link(merge.folder, output)
    with locked(merge.folder, wait=True):
        checkpoints = [sha256_of(run) for run in merge.members]
        if merge.file.is_file() and read_json(merge.file).get("members") == checkpoints:
            return
        for test in merge.tests:
            (test.folder / RESULTS_FILE).unlink(missing_ok=True)
        merge.file.unlink(missing_ok=True)
        rmtree(merge.model, ignore_errors=True)
        with open(merge.folder / "log.txt", "w") as log, redirect_stdout(log):
            main(merge.arguments)
        content = settings_of(merge) | {"members": checkpoints}
        write_json(merge.file, content | source())


def sha256_of(run: Run) -> str:
    """The SHA-256 of what a run has learned."""
    return checksum(Path(run.variant.facts.checkpoint_in(str(run.folder), None)))


def settings_of(merge: Merge) -> dict[str, Any]:
    """The settings of the tests of a merged model, and what was chosen for it, by which images."""
    from inference.models import run_configuration
    from runs.calibrate import read_dataset
    from trainers.base.data_use import choice

    run = merge.members[0]
    chosen = run.option("--chosen")
    content = read_json(Path(chosen)) if chosen else {"settings": {}, "choices": []}
    section = f"TRAINER.{run.variant.facts.section()}"
    learned = read_json(merge.model / "config.json", LARGEST)["settings"]
    settings = {f"{section}.{key}": str(learned[key]) for key in OF_SUMS if key in learned}
    choices = list(content["choices"])
    if merge.how.chooses:
        cfg = run_configuration(run.folder)
        dataset = read_dataset(run.folder)
        record = choice("merge", cfg, title(cfg), dataset.val, dataset, len(merge.members))
        choices.append(record.to_json())
    return {"settings": content["settings"] | settings, "choices": choices}
