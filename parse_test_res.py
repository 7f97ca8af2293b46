"""Mean results of runs, read from their logs: this project's, CoOp's, and those of projects built
on CoOp.

    python parse_test_res.py output/base2new/test_new/eurosat/shots_16/MPL/NAME --test-log

DIRECTORY holds a folder for every seed (seed1, seed2, ...), each with a log.txt. With --multi-exp
it holds several such folders, and a last line averages over them.
"""

import re
import statistics
from argparse import Namespace
from pathlib import Path

from common.errors import UsageError
from common.files import check_folder
from common.names import printable
from common.start import Parser
from common.text import read_text
from measures.results import SELECTED
from runs.session import run_command

LARGEST_LOG = 1 << 28  # bytes
# The line of a log before its results: the last results of a training run, or those of an
# evaluation.
TRAINED = "Finish training"
TESTED = "=> result"
# Settings that the runs of one mean share, and their places in the settings at the start of a log.
IN_COMMON = {
    "method": r"^ *trainer: (\S+)$",
    "dataset": r"^DATASET:\n(?:  .*\n)*?  NAME: (\S+)$",
    "number of shots": r"^ +NUM_SHOTS: (\S+)$",
    "part of the classes": r"^ +SUBSAMPLE_CLASSES: (\S+)$",
    "backbone": r"^  BACKBONE:\n(?:    .*\n)*?    NAME: (\S+)$",
}


def natural(path: Path) -> list:
    """Sorting key: seed10 after seed9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def logs(folder: Path) -> list[Path]:
    """Every log of a run, the oldest first: a run that was started again has log.txt-<time> next to
    log.txt.
    """
    return sorted(folder.glob("log.txt*"), key=natural)


def read_log(text: str, signal: str, keyword: str) -> float | None:
    """The last `* keyword: VALUE%` after a line that is the signal, or None."""
    start = [match.end() for match in re.finditer(rf"^{re.escape(signal)}\s*$", text, re.MULTILINE)]
    number = r"(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,15})?"
    line = rf"^\* {re.escape(keyword)}: ({number})%?\s*$"
    values = re.findall(line, text[start[0] :] if start else "", re.MULTILINE | re.ASCII)
    return float(values[-1].replace(",", "")) if values else None


def parse(directory: Path, args: Namespace) -> tuple[float, bool] | None:
    """Print what the runs in a folder reached and their mean.

    Returns:
        the mean, and whether test images chose the epoch or a setting of a run, by its log.

    Raises:
        UsageError: the runs are not the seeds of one method, dataset, ...
    """
    print(f"Parsing files in {printable(directory)}")
    runs = []
    for folder in sorted(filter(Path.is_dir, directory.iterdir()), key=natural):
        run = parse_run(folder, args)
        if run:
            runs.append(run)
    if not runs:
        return None
    check_alike([text for _, text in runs], directory)
    values = [value for value, _ in runs]
    selected = sum(is_selected(text) for _, text in runs)
    mean = statistics.fmean(values)
    spread = statistics.pstdev(values)
    if args.ci95:  # half of the interval
        spread *= 1.96 / len(values) ** 0.5
    print(f"===\nSummary of directory: {printable(directory)}")
    print(f"* {args.keyword}: {mean:.2f}% +- {spread:.2f}%")
    if selected:
        print(f"* {SELECTED.lower()}: {selected} of {len(values)} runs")
    print("===")
    return mean, selected > 0


def check_alike(logs: list[str], directory: Path) -> None:
    """Raise UsageError if logs are not of the seeds of one method, dataset, ..."""
    for name, pattern in IN_COMMON.items():
        several: set[str] = set()
        for text in logs:
            several.update(re.findall(pattern, text, re.MULTILINE)[:1])
        if len(several) > 1:
            fault = f"the runs in {directory} differ in the {name}: {', '.join(sorted(several))}"
            remedy = "give the folder of the seeds of one run, or --multi-exp"
            raise UsageError(fault, remedy, directory)


def parse_run(folder: Path, args: Namespace) -> tuple[float, str] | None:
    """Print what one run reached; returns the value and the text of its last log with one."""
    found = None
    for file in logs(folder):
        text = read_text(file, LARGEST_LOG, "replace")
        value = read_log(text, args.signal, args.keyword)
        if value is not None:
            found = value, text
            line = f"file: {printable(file)}. {args.keyword}: {value:.2f}%"
    if found:
        mark = f" ({SELECTED.lower()})" if is_selected(found[1]) else ""
        print(f"{line}{mark}")
    elif logs(folder):
        why = "the run is unfinished, or --test-log or --keyword is wrong"
        print(f"file: {printable(logs(folder)[-1])}. no result: {why}")
    return found


def is_selected(text: str) -> bool:
    """Whether a log says that test images chose something."""
    return re.search(f"^{SELECTED}", text, re.MULTILINE) is not None


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="folder of the seeds' folders")
    parser.add_argument(
        "--ci95", action="store_true", help="95%% interval instead of the standard deviation"
    )
    parser.add_argument(
        "--test-log", action="store_true", help="the logs are those of --eval-only runs"
    )
    parser.add_argument(
        "--multi-exp", action="store_true", help="DIRECTORY holds several experiments"
    )
    parser.add_argument("--keyword", default="accuracy", help="accuracy, error or macro_f1")
    args = parser.parse_args()
    args.signal = TESTED if args.test_log else TRAINED
    check_folder(args.directory, "no folder", "give the folder that holds seed1, seed2, ...")
    folders = filter(Path.is_dir, args.directory.iterdir()) if args.multi_exp else [args.directory]
    means = [
        found
        for folder in sorted(folders, key=natural)
        if (found := parse(folder, args)) is not None
    ]
    if not means:
        hint = "" if args.test_log else "; give --test-log if they are logs of tests"
        remedy = f"it must hold folders with a log.txt that has * {args.keyword}{hint}"
        raise UsageError(f"no finished run in {args.directory}", remedy)
    if args.multi_exp:
        print(
            f"Average performance\n* {args.keyword}: "
            f"{statistics.fmean(mean for mean, _ in means):.2f}%"
        )
        if selected := sum(marked for _, marked in means):
            print(f"* {SELECTED.lower()}: {selected} of {len(means)} folders")
    interval = "half of the 95% interval of the mean over seeds (normal)"
    print(f"+-: {interval if args.ci95 else 'standard deviation over seeds (population)'}")


if __name__ == "__main__":
    run_command(main, "from the start")
