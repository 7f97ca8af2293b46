"""The table of docs/methods.md that says what works with which method: its cells are what the commands do.

Tests of their own kill runs and start studies.
"""

import re

import pytest
from learned import NAMES, images_of

from common.errors import UsageError
from common.start import ROOT
from inference import export, predict
from trainers import methods
from trainers.base.test_time import ViewsTrainer

SECTION = (ROOT / "docs/methods.md").read_text().partition("## What works with which method\n")[2].partition("\n## ")[0]
LINES = {f"({number})": line for number, line in re.findall(r"^(\d)\. `(.*?)`", SECTION, re.MULTILINE)}
HEAD, _, *ROWS = ([cell.strip() for cell in row.strip("| ").split("|")] for row in re.findall(r"^\|.*", SECTION, re.M))
TABLE = {name: dict(zip(HEAD[1:], row[1:], strict=True)) for row in ROWS for name in re.findall(r"`(\S+?)`", row[0])}
QUICK = {
    "CLIPLoRA": ("N_ITERS", 4),
    "LoCoOp": ("TOPK", 0.2),
    "TipAdapter": ("SEARCH_STEP", [4, 3]),
    "TipAdapterF": ("SEARCH_STEP", [4, 3]),
    "LPPlusPlus": ("STEPS", 20),
    "GDA": ("K", 6),
}


def settings(method):
    """Overrides for short runs."""
    kind = methods()[method]
    name, value = ("VIEWS", 4) if issubclass(kind, ViewsTrainer) else QUICK.get(method.rpartition("+")[2], ("", 0))
    return (f"TRAINER.{kind.section()}.{name}", value) if name else ()


def test_every_method_has_a_row():
    named = [name for row in ROWS for name in re.findall(r"`(\S+?)`", row[0])]
    assert sorted(named) == sorted(methods())
    assert {cell for row in ROWS for cell in row[1:]} == {"ok", "–", *LINES}
    for method, row in TABLE.items():
        assert row["train"] == ("ok" if methods()[method].learns else "–")
        assert {row[name] for name in ("kill and resume", "study", "tables", "export")} == {"ok"}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("method", methods())
def test_commands_do_what_the_table_says(method, finished, command, deep, eurosat, tmp_path):
    row, short, kind = TABLE[method], settings(method), methods()[method]
    trained = finished(method, "base" if kind.transfers else "all", *short)

    def expect(column, lines):
        line = LINES.get(row[column], "").replace("METHOD", method)
        assert bool(lines) == bool(line) and line in "".join(lines), (column, lines)

    def started(program, *arguments):
        ended = command(program, *arguments, "--backbone", deep)
        lines = [line for line in ended.errors if line.startswith("error: ")]
        assert (ended.status, len(lines)) in ((0, 0), (2, 1)), ended
        return lines

    try:
        finished(method, "new", *short, tests=trained)
        lines = []
    except UsageError as error:
        lines = [str(error)]
    expect("`--eval-only` on new classes", lines)
    images = list(images_of(eurosat, range(2)))[:2]
    expect("predict, other classes", started(predict, trained, *images, "--classes", "grey", "white snow"))
    names = () if kind.learns else ("--classes", *NAMES[:3])
    expect("export", started(export, trained, "--to", tmp_path / "out", *names))
    expect("export `--weights`", started(export, trained, "--to", tmp_path / "weights", "--weights", *names))
