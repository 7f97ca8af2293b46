"""The tables of README.md and docs/ that the code knows: `python docs/reference.py` writes them.

A table is below a comment `<!-- table: NAME -->`. Some columns of a table are written by hand:
these stay.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / place) for place in (".", "docs", "tests/helpers", "tests/commands")]

import drawn  # noqa: E402
from marks import case_of  # noqa: E402
from reference import fit_options  # noqa: E402

import trainers  # noqa: E402
from configs.recipes import recipe  # noqa: E402
from studies.plan import load  # noqa: E402

PAGES = ("docs/own_classes.md", "docs/reproduce.md", "docs/studies.md")
FILES = ROOT / "studies/published"
PUBLISHED = json.loads((FILES / "published_results.json").read_text())
Cells = list[str]


def golden_cases() -> Counter[str]:
    """By method the number of files in tests/golden that compare it with its official code; of
    DePT, by base too.
    """
    found: Counter[str] = Counter()
    for file in (ROOT / "tests/golden").glob("*.json"):
        content = json.loads(file.read_text())
        case = case_of(content) or ({"trainer": "ZeroshotCLIP"} if "template" in content else {})
        found.update([case["trainer"]] if "trainer" in case else [])
        found.update([f"{case['trainer']}+{case['base']}"] if "base" in case else [])
    return found


def numbers(row: dict, keys: Iterable[str]) -> Cells:
    return [f"{row[key]:.2f}" for key in keys]


def name(row: dict) -> str:
    return ", ".join(row[key] for key in ("method", "variant") if key in row)


# The tables; each function gets the rows on the page.


def verified(old: list[Cells]) -> list[Cells]:
    """A row for the methods of which the same has been tested, each with its number of golden
    cases.
    """
    from test_published_checkpoints import CASES

    cases = golden_cases()
    loaded = {*drawn.METHODS, *(case["method"] for case in CASES.values())}
    loaded -= {"TwoStage", "FineTune"}  # their code saves nothing in this form
    groups: dict[tuple[str, str], list[str]] = {}
    for method in sorted(
        (name for name in trainers.methods() if "+" not in name or cases[name]), key=str.lower
    ):
        half = "fp16, bf16" if method in {*drawn.METHODS} - drawn.ADAPTED else "no test"
        half = "bf16" if method in {*drawn.ADAPTED, "LinearProbe"} else half
        groups.setdefault(("yes" if method in loaded else "–", half), []).append(
            f"{method} {cases[method]}"
        )
    rows = [[", ".join(methods), *facts] for facts, methods in groups.items()]
    return [
        ["methods, and their cases", "form of the official checkpoint", "half precision on a CPU"],
        *rows,
    ]


def settings(old: list[Cells]) -> list[Cells]:
    """The YAML files of the methods; what is behind them, the scripts and the notes are written by
    hand.
    """
    rows = []
    for titles, file, *others in old[1:]:
        first = titles.partition(", ")[0]
        method = trainers.methods().get(first)
        if method and "`" in file:
            cfg = recipe(first, "base2new" if method.transfers else "few_shot", "eurosat").cfg
            file = f"`{cfg}`{file.rpartition('`')[2]}"  # noqa: PLW2901
        rows.append([titles, file, *others])
    listed = {title.partition("+")[0] for row in rows for title in row[0].split(", ")}
    missing = {method.partition("+")[0] for method in trainers.methods()} - listed
    return [old[0], *rows, *([method, "?", "?", "?"] for method in sorted(missing))]


def authors(old: list[Cells]) -> list[Cells]:
    rows = []
    for row in PUBLISHED["base2new"]:
        epochs = f", {row['epochs']} epochs" if "epochs" in row else ""
        cfg = "–" if row["cfg"] == "*" else f"`{row['cfg']}`{epochs}"
        rows.append([name(row), *numbers(row, ("base", "new", "H")), row["source"], cfg])
    return [["method", "base", "new", "H", "source", "YAML file here"], *rows]


def studies(old: list[Cells]) -> list[Cells]:
    """Contents are written by hand."""
    contents = {row[0]: row[1] for row in old}
    rows = []
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        study = load(file, settings=False)
        runs = study.runs()
        trials = f"{len(study.trials())} trials"
        content = re.sub(r"\d+ trials", trials, contents.get(f"`{file.name}`", "?"))
        content += f"; {trials}" * (bool(study.trials()) and trials not in content)
        rows.append(
            [f"`{file.name}`", content, str(sum(run.trains for run in runs)), str(len(runs))]
        )
    return [old[0], *rows]


def options(old: list[Cells]) -> list[Cells]:
    """The options of a fit that the page has, and what they mean."""
    meaning = fit_options()
    return [old[0], *([option, meaning[option]] for option, _ in old[1:])]


TABLES: dict[str, Callable[[list[Cells]], list[Cells]]] = {
    "verified": verified,
    "settings": settings,
    "authors": authors,
    "studies": studies,
    "fit": options,
}


def written(text: str) -> str:
    """The text of a page with its tables as the code knows them."""

    def table(found: re.Match) -> str:
        old = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()
        ]
        head, *rows = TABLES[found[1]]([row for row in old if not set("".join(row)) <= {"-"}])
        lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
        lines.insert(1, "|" + "---|" * len(head))
        return "\n".join([f"<!-- table: {found[1]} -->\n", *lines, ""])

    return re.sub(r"<!-- table: ([^>]*) -->\n\n((?:\|.*\|\n)+)", table, text)
