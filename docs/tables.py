"""The tables of README.md and docs/ that the code knows: `python docs/reference.py` writes them.

A table is below a comment `<!-- table: NAME -->`. Some columns of a table are written by hand: these stay.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import drawn  # noqa: E402
from marks import case_of  # noqa: E402

import trainers  # noqa: E402
from experiments.protocols import recipe  # noqa: E402
from experiments.results import harmonic_mean  # noqa: E402
from experiments.studies.study_file import load  # noqa: E402

PAGES = ("README.md", "docs/results.md", "docs/studies.md")
FILES = ROOT / "experiments/studies"
PAPER = json.loads((FILES / "paper_tables.json").read_text())
PUBLISHED = json.loads((FILES / "published_results.json").read_text())
TITLES = {"dtd": "DTD", "eurosat": "EuroSAT", "fgvc_aircraft": "Aircraft", "food101": "Food101"}
TITLES |= {"oxford_flowers": "Flowers", "oxford_pets": "Pets", "stanford_cars": "Cars", "caltech101": "Caltech101"}
TITLES |= {"sun397": "SUN397", "ucf101": "UCF101", "imagenet": "ImageNet", "average": "average"}
DOMAINS = {"imagenet": "ImageNet", "imagenetv2": "ImageNet-V2", "imagenet_sketch": "-Sketch", "imagenet_a": "-A"}
DOMAINS |= {"imagenet_r": "-R", "average": "average of four"}
Row = list[str]


def golden_cases() -> Counter[str]:
    """By method the number of files in tests/golden that compare it with its official code; of DePT, by base too."""
    found: Counter[str] = Counter()
    for file in (ROOT / "tests/golden").glob("*.json"):
        content = json.loads(file.read_text())
        case = case_of(content) or ({"trainer": "ZeroshotCLIP"} if "template" in content else {})
        found.update([case["trainer"]] if case else [])
        found.update([f"{case['trainer']}+{case['base']}"] if "base" in case else [])
    return found


def numbers(row: dict, keys: Iterable[str]) -> Row:
    return [f"{row[key]:.2f}" for key in keys]


def name(row: dict) -> str:
    return ", ".join(row[key] for key in ("method", "variant") if key in row)


def by_column(rows: dict[str, dict], titles: dict[str, str], *more: str) -> list[Row]:
    """A row for each method, with its accuracies under their titles."""
    keys = [key for key in next(iter(rows.values())) if key in titles]
    cells = [[method, *numbers(row, keys), *(row[key] for key in more)] for method, row in rows.items()]
    return [["method", *(titles[key] for key in keys), *more], *cells]


def fits(row: dict, rounded: float = 0.005 + 1e-9) -> bool:
    """Whether the printed H can be the harmonic mean of accuracies that are printed as base and new."""
    least, most = (harmonic_mean(row["base"] + step, row["new"] + step) for step in (-rounded, rounded))
    return least - rounded <= row["H"] <= most + rounded


# The tables; each function gets the rows on the page.


def verified(old: list[Row]) -> list[Row]:
    from test_published_checkpoints import CASES

    cases, loaded = golden_cases(), {*drawn.METHODS, *(case.method for case in CASES.values())}
    loaded -= {"TwoStage"}  # its code saves nothing
    rows = []
    for method in sorted((name for name in trainers.methods() if "+" not in name or cases[name]), key=str.lower):
        code = f"{cases[method] or 'none'}{' cases' if cases[method] > 1 else ' case' if cases[method] else ''}"
        half = "fp16, bf16" if method in {*drawn.METHODS} - drawn.ADAPTED else "no test"
        half = "bf16" if method in {*drawn.ADAPTED, "LinearProbe"} else half
        rows.append([method, code, "yes" if method in loaded else "–", "not yet", "not yet", half])
    return [["method", "official code", "official checkpoint", "accuracy with ViT-B/16", "GPU", HALF], *rows]


HALF = "half precision on a CPU"


def methods(old: list[Row]) -> list[Row]:
    """README's: papers and kinds are written by hand, and what follows the file and the count."""
    cases, rows = golden_cases(), []
    for title, paper, kind, settings, compared in old[1:]:
        method = trainers.methods().get(title)
        if method and "`" in settings:
            cfg = recipe(title, "base2new" if method.transfers else "few_shot", "eurosat").cfg
            settings = f"`{cfg}`{settings.rpartition('`')[2]}"
        count = cases[title.removesuffix("+METHOD")]
        rest = re.sub(r"^\w+ cases?", "", compared)
        rows.append([title, paper, kind, settings, f"{count or 'no'} case{'s' * (count > 1)}{rest}"])
    missing = {method.partition("+")[0] for method in trainers.methods()}
    missing -= {row[0].removesuffix("+METHOD") for row in rows}
    return [old[0], *rows, *([method, "?", "?", "``", "no case"] for method in sorted(missing))]


def authors(old: list[Row]) -> list[Row]:
    rows = []
    for row in PUBLISHED["base2new"]:
        cfg = "–" if row["cfg"] == "*" else f"`{row['cfg']}`"
        rows.append([name(row), cfg, str(row.get("epochs", "–")), *numbers(row, ("base", "new", "H")), row["source"]])
    return [["method", "YAML file here", "epochs", "base", "new", "H", "source"], *rows]


def others(transductive: bool | None) -> list[Row]:
    rows = [row for row in PUBLISHED["base2new_others"] if row.get("transductive") == transductive]
    cells = [[name(row), *numbers(row, ("base", "new", "H")), row["source"]] for row in rows]
    return [["method", "base", "new", "H", "source"], *cells]


def misfits(old: list[Row]) -> list[Row]:
    rows = [row for row in PUBLISHED["base2new_others"] if not fits(row)]
    means = [f"{harmonic_mean(row['base'], row['new']):.2f}" for row in rows]
    cells = [[name(row), *numbers(row, ("base", "new", "H")), mean] for row, mean in zip(rows, means, strict=True)]
    return [["method", "base", "new", "printed H", "recomputed H"], *cells]


def few_shot(old: list[Row]) -> list[Row]:
    few = PUBLISHED["few_shot"]
    rows = [[method, *(f"{value:.2f}" for value in row)] for method, row in few["averages"].items()]
    return [["method", *(f"{shots} shot{'s' * (shots > 1)}" for shots in few["shots"])], *rows]


def hours(old: list[Row]) -> list[Row]:
    rows = []
    for method, row in PUBLISHED["training_hours"].items():
        times = [f"{row[key]} h" for key in ("imagenet_one_seed_hours", "ten_datasets_three_seeds_hours")]
        rows.append([method, row["hardware"].removesuffix(" GPU"), str(row["epochs"]), *times])
    return [old[0], *rows]


def milliseconds(old: list[Row]) -> list[Row]:
    times = PUBLISHED["training_ms_per_image"].items()
    return [old[0], *([method, str(time)] for method, time in times if isinstance(time, int))]


def studies(old: list[Row]) -> list[Row]:
    """Contents are written by hand."""
    contents = {row[0]: row[1] for row in old}
    rows = []
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        study = load(file, settings=False)
        runs = study.runs()
        sizes = [len(study.variants), len(study.datasets or study.targets), len(study.seeds)]
        trials = f"{len(study.trials())} trials"
        content = re.sub(r"\d+ trials", trials, contents.get(f"`{file.name}`", "?"))
        content += f"; {trials}" * (bool(study.trials()) and trials not in content)
        rows.append([f"`{file.name}`", content, *map(str, (*sizes, sum(run.trains for run in runs), len(runs)))])
    return [old[0], *rows]


TABLES: dict[str, Callable[[list[Row]], list[Row]]] = {
    "verified": verified,
    "methods": methods,
    "paper, new classes": lambda old: by_column(PAPER["base2new"]["new"], TITLES),
    "paper, cross-dataset": lambda old: by_column(PAPER["cross_dataset"]["all classes"], TITLES),
    "authors": authors,
    "other results": lambda old: others(None),
    "with unlabelled images": lambda old: others(True),
    "rows that do not fit": misfits,
    "few-shot": few_shot,
    "domains": lambda old: by_column(PUBLISHED["domain_generalisation"], DOMAINS, "source"),
    "test time": lambda old: by_column(PUBLISHED["test_time"], DOMAINS, "source"),
    "hours": hours,
    "milliseconds": milliseconds,
    "studies": studies,
}


def written(text: str) -> str:
    """The text of a page with its tables as the code knows them."""

    def table(found: re.Match) -> str:
        old = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()]
        head, *rows = TABLES[found[1]]([row for row in old if not set("".join(row)) <= {"-"}])
        lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join([f"<!-- table: {found[1]} -->\n", *lines, ""])

    return re.sub(r"<!-- table: ([^>]*) -->\n\n((?:\|.*\|\n)+)", table, text)
