"""docs/results.md has the values of the two JSON files, and these fit together: averages and harmonic means."""

import json
import re
from statistics import fmean

import pytest
from dassl.config import get_cfg_default
from drawn import ADAPTED, METHODS
from marks import golden_cases, tables
from test_published_checkpoints import CASES as CHECKPOINTS

import trainers
from common.start import ROOT
from experiments.configuration import extend_cfg
from experiments.protocols import ELEVEN
from experiments.results import harmonic_mean
from experiments.studies.reproduce import AUTHORS, PUBLISHED, VARIANTS
from experiments.studies.tables import PAPER

PAGE = (ROOT / "docs/results.md").read_text()
OTHERS = PUBLISHED["base2new_others"]
NEW, CROSS = PAPER["base2new"]["new"], PAPER["cross_dataset"]["all classes"]
ROUNDED = 0.005 + 1e-9  # a printed number has two decimals
# Their printed H is not the harmonic mean of their printed accuracies.
DO_NOT_FIT = ["ProDA, another value for new classes", "RPO", "GDA", "HPT"]
TITLES = {"dtd": "DTD", "eurosat": "EuroSAT", "fgvc_aircraft": "Aircraft", "food101": "Food101"}
TITLES |= {"oxford_flowers": "Flowers", "oxford_pets": "Pets", "stanford_cars": "Cars", "caltech101": "Caltech101"}
TITLES |= {"sun397": "SUN397", "ucf101": "UCF101", "imagenet": "ImageNet", "average": "average"}


# The tables below each heading of the page.
TABLES = {name: tables(text) for name, text in re.findall(r"^#+ (.*)\n((?:(?!#+ ).*\n?)*)", PAGE, re.MULTILINE)}


def printed(*numbers: float) -> list[str]:
    return [f"{number:.2f}" for number in numbers]


def name(row: dict) -> str:
    return ", ".join(row[key] for key in ("method", "variant") if key in row)


def fits(row: dict) -> bool:
    """Whether the printed H can be the harmonic mean of accuracies that are printed as base and new."""
    least, most = (harmonic_mean(row["base"] + step, row["new"] + step) for step in (-ROUNDED, ROUNDED))
    return least - ROUNDED <= row["H"] <= most + ROUNDED


def test_harmonic_means_fit_but_for_the_named_rows():
    assert [name(row) for row in (*AUTHORS, *OTHERS) if not fits(row)] == DO_NOT_FIT


def test_averages_fit():
    domains = {**PUBLISHED["domain_generalisation"], **PUBLISHED["test_time"]}
    parts = [(row, ELEVEN) for row in NEW.values()]
    parts += [(row, [dataset for dataset in ELEVEN if dataset != "imagenet"]) for row in CROSS.values()]
    parts += [(row, VARIANTS) for row in domains.values()]
    for row, datasets in parts:
        assert fmean(row[dataset] for dataset in datasets) == pytest.approx(row["average"], abs=2 * ROUNDED), row
    assert all(set(row) == {*ELEVEN, "average"} for row in NEW.values())
    assert all(set(row) == {*ELEVEN, "average"} - {"imagenet"} for row in CROSS.values())


@pytest.mark.parametrize(("heading", "rows"), [("Table II: new classes", NEW), ("Table III: cross-dataset", CROSS)])
def test_tables_of_the_paper(heading, rows):
    (table,) = TABLES[heading]
    columns = list(rows["MPL"])
    assert table[0] == ["method", *(TITLES[column] for column in columns)]
    assert table[1:] == [[method, *printed(*(row[column] for column in columns))] for method, row in rows.items()]


def test_base_to_new_tables():
    def cells(rows):
        return [[name(row), *printed(row["base"], row["new"], row["H"]), row["source"]] for row in rows]

    (here,) = TABLES["Results with a YAML file here"]
    assert [[row[0], *row[3:]] for row in here[1:]] == cells(AUTHORS)
    for (_, cfg, epochs, *_), row in zip(here[1:], AUTHORS, strict=True):
        assert (cfg, epochs) == ("–" if row["cfg"] == "*" else f"`{row['cfg']}`", str(row.get("epochs", "–")))
    for heading, transductive in (("Other results", None), ("With unlabelled images", True)):
        (table,) = TABLES[heading]
        assert table[1:] == cells(row for row in OTHERS if row.get("transductive") == transductive)
    (misfits,) = TABLES["Rows that do not fit"]
    assert misfits[1:] == [
        [name(row), *printed(row["base"], row["new"], row["H"], harmonic_mean(row["base"], row["new"]))]
        for row in OTHERS
        if name(row) in DO_NOT_FIT
    ]


def test_yaml_files_beside_the_results_have_their_epochs():
    for row in AUTHORS:
        if "epochs" in row:
            cfg = get_cfg_default()
            extend_cfg(cfg, row["method"])
            cfg.merge_from_file(ROOT / f"configs/trainers/{row['method']}/{row['cfg']}.yaml")
            assert row["epochs"] == cfg.OPTIM.MAX_EPOCH, row


def test_tables_by_shots_and_domain():
    few = PUBLISHED["few_shot"]
    (table,) = TABLES["Few-shot learning"]
    assert [column.split()[0] for column in table[0][1:]] == [str(shots) for shots in few["shots"]]
    assert table[1:] == [[method, *printed(*row)] for method, row in few["averages"].items()]
    assert f"Zero-shot CLIP has {few['zero_shot']:.2f}." in PAGE
    for heading, part in (
        ("Domain generalisation", "domain_generalisation"),
        ("Test-time prompt learning", "test_time"),
    ):
        (table,) = TABLES[heading]
        assert table[0] == ["method", "ImageNet", "ImageNet-V2", "-Sketch", "-A", "-R", "average of four", "source"]
        columns = ("imagenet", *VARIANTS, "average")
        rows = PUBLISHED[part].items()
        assert table[1:] == [[m, *printed(*(row[column] for column in columns)), row["source"]] for m, row in rows]


def test_times_and_sources():
    hours, milliseconds = TABLES["Training times"]
    assert hours[1:] == [
        [
            method,
            row["hardware"].removesuffix(" GPU"),
            str(row["epochs"]),
            f"{row['imagenet_one_seed_hours']} h",
            f"{row['ten_datasets_three_seeds_hours']} h",
        ]
        for method, row in PUBLISHED["training_hours"].items()
    ]
    times = PUBLISHED["training_ms_per_image"]
    assert milliseconds[1:] == [[method, str(time)] for method, time in times.items() if isinstance(time, int)]
    (sources,) = TABLES["Sources"]
    assert [row[0] for row in sources[1:]] == list(PUBLISHED["sources"])
    assert all(source["url"] in row[1] for row, source in zip(sources[1:], PUBLISHED["sources"].values(), strict=True))
    named = {row["source"] for row in [*AUTHORS, *OTHERS, *PUBLISHED["domain_generalisation"].values()]}
    assert named <= set(PUBLISHED["sources"])


def test_every_number_in_the_text_is_published_or_computed_from_published_ones():
    text = re.sub(r"(?m)^\|.*$|\]\(.*?\)", "", PAGE)
    mpl, theirs = NEW["MPL"], NEW["PromptSRC"]
    (own,) = (row["new"] for row in AUTHORS if row["method"] == "PromptSRC")
    far, near = CROSS["MPL"]["eurosat"], CROSS["PromptSRC"]["eurosat"]
    eurosat = mpl["eurosat"] - theirs["eurosat"]
    computed = printed(mpl["average"] - theirs["average"], own - mpl["average"], eurosat, far - near)
    computed += [f"{100 * eurosat / theirs['eurosat']:.1f}", f"{100 * (far - near) / near:.1f}"]
    assert [number for number in computed if number not in text] == []
    published = map(float, re.findall(r"\d+\.\d+", json.dumps([PAPER, PUBLISHED])))
    known = {*published, *map(float, computed)}
    assert [number for number in re.findall(r"\b\d+\.\d+\b", text) if float(number) not in known] == []


def test_the_first_table_counts_what_the_tests_compare():
    (table,) = TABLES["Verified here"]
    cases = golden_cases()
    names = [name for name in trainers.methods() if "+" not in name or cases[name]]
    assert [row[0] for row in table[1:]] == sorted(names, key=str.lower)
    loaded = {*METHODS, *(case.method for case in CHECKPOINTS.values())}
    for method, code, checkpoint, accuracy, gpu, half in table[1:]:
        count = cases[method]
        assert code == ("none" if count == 0 else f"{count} case{'s' * (count > 1)}"), method
        assert checkpoint == ("yes" if method in loaded else "–"), method
        assert ("fp16" in half) == (method in METHODS and method not in ADAPTED), method
        assert (accuracy, gpu) == ("not yet",) * 2
