"""Runs that differ only in their seeds, side by side in one process."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clip import current_ranks
from common.errors import one_line
from trainers.together import Company, Member, NotTogether

from .configuration import setup_cfg
from .output_folder import check_same_settings
from .results import FILE as RESULTS
from .run import check_arguments, train_and_test


class Labelled:
    """A text stream that puts a label before each line; everything else is that of the stream."""

    def __init__(self, stream: Any, label: str):
        self.stream, self.label, self.in_line = stream, label, False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(line if self.in_line else self.label + line)
            self.in_line = not line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def train_seeds(runs: Sequence[Namespace]) -> None:
    """Execute the runs of a command line with several seeds.

    Args:
        runs: the arguments of each, as `arguments.per_seed` returns them.

    Raises:
        UsageError: a run has a missing or wrong argument, or its folder holds another one; none of them has started.
        Exception: that of the first run that failed, after the others have ended.
    """
    ranks = current_ranks()
    ranks.agree({"--seed": [run.seed for run in runs]})
    for run in runs:
        cfg = setup_cfg(run)
        check_same_settings(cfg, run.skip_finished and Path(cfg.OUTPUT_DIR, RESULTS).is_file())
        check_arguments(run, cfg)
    if ranks.count > 1:
        print("Several ranks train the seeds one after another")
        for run in runs:
            train_and_test(run)
        return
    errors = train_together(runs)
    failed = {run.seed: error for run, error in zip(runs, errors, strict=True) if error is not None}
    if not failed:
        return
    if len(failed) < len(runs):
        for seed, error in failed.items():
            print(f"seed {seed} failed: {one_line(error)}", file=sys.stderr)
        print("The runs of the other seeds are finished", file=sys.stderr)
    raise next(iter(failed.values()))


def train_together(runs: Sequence[Namespace], wait: bool = False) -> list[BaseException | None]:
    """Execute runs together; if their method does not allow that, one after another.

    Args:
        runs: the arguments of each.
        wait: wait for another run in the same output folder.

    Returns:
        the error of each run, or None.
    """

    def execute(run: Namespace, member: Member | None = None) -> None:
        try:
            train_and_test(run, wait, member)
        except Exception as error:
            print(f"Failed: {one_line(error)}")  # now, as the runs of other seeds may continue for hours
            raise

    if len(runs) > 1:
        try:
            stdouts = [Labelled(sys.stdout, f"seed {run.seed} | ") for run in runs]
            return Company([partial(execute, run) for run in runs], stdouts).run()
        except NotTogether:
            print("The method has gradients without self.autograd (docs/methods.md): its seeds run one after another")
    errors: list[BaseException | None] = []
    for run in runs:
        try:
            execute(run)
            errors.append(None)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an error of one run does not stop the others
            errors.append(error)
    return errors
