"""Pages that docs/reference.py writes from the code are what it writes now, and published results
fit together.
"""

import re
import runpy
from statistics import fmean

import pytest
from dassl.config import get_cfg_default

import trainers
from common.start import ROOT
from measures.results import harmonic_mean
from runs.config import extend_cfg, flatten
from studies.reproduce import AUTHORS, PUBLISHED, VARIANTS
from studies.study import ELEVEN
from studies.tables import PAPER

PAGE = (ROOT / "docs/configuration.md").read_text()
TABLES = runpy.run_path(str(ROOT / "docs/tables.py"))
REMEDY = "run `python docs/reference.py`"


def test_configuration_is_up_to_date():
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    assert reference["page"]() == PAGE, REMEDY


@pytest.mark.parametrize("page", TABLES["PAGES"])
def test_tables_are_up_to_date(page):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text and "| ? |" not in text
    assert TABLES["written"](text) == text, REMEDY


def entry(name: str) -> str:
    """The text about the settings of a method."""
    return next(
        text for text in PAGE.split("\n### ") if name in text.partition("\n")[0].split(", ")
    )


def test_every_key_is_there():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    common = {key for key in flatten(cfg) if not re.match(r"TRAINER\.(?!NAME$)|BY_DATASET", key)}
    assert (
        len(common) > 90
        and {key for key in common if f"`{key} " not in PAGE and f"`{key}`" not in PAGE} == set()
    )
    shared = set(re.findall(r"^- `(PREC)`", PAGE, re.MULTILINE))
    for name, method in trainers.methods().items():
        plugin, _, over = name.partition("+")
        text = "".join(entry(title) for title in (plugin, over or plugin))
        assert {
            key for key in method.Settings.schema() if not re.search(rf"`{key}[ `]", text)
        } <= shared, name


def fits(row: dict, rounded: float = 0.005 + 1e-9) -> bool:
    """Whether the printed H can be the harmonic mean of accuracies that are printed as base and
    new.
    """
    least, most = (
        harmonic_mean(row["base"] + step, row["new"] + step) for step in (-rounded, rounded)
    )
    return least - rounded <= row["H"] <= most + rounded


def test_harmonic_means_of_published_results_fit_but_for_the_named_rows():
    misfits = [row for row in (*AUTHORS, *PUBLISHED["base2new_others"]) if not fits(row)]
    names = ["ProDA, another value for new classes", "RPO", "GDA", "HPT"]
    assert [TABLES["name"](row) for row in misfits] == names


def test_averages_of_published_results_fit():
    parts = [(row, ELEVEN) for row in PAPER["base2new"]["new"].values()]
    targets = [dataset for dataset in ELEVEN if dataset != "imagenet"]
    parts += [(row, targets) for row in PAPER["cross_dataset"]["all classes"].values()]
    domains = PUBLISHED["domain_generalisation"] | PUBLISHED["test_time"]
    parts += [(row, VARIANTS) for row in domains.values()]
    for row, datasets in parts:  # a printed number has two decimals
        assert fmean(row[dataset] for dataset in datasets) == pytest.approx(
            row["average"], abs=0.011
        ), row
    named = {row["source"] for row in [*AUTHORS, *PUBLISHED["base2new_others"], *domains.values()]}
    assert named <= set(PUBLISHED["sources"])


def test_yaml_files_beside_published_results_have_their_epochs():
    epochs = {(row["method"], row["cfg"]): row["epochs"] for row in AUTHORS if "epochs" in row}
    assert len(epochs) > 5
    for (method, cfg), expected in epochs.items():
        node = get_cfg_default()
        extend_cfg(node, method)
        node.merge_from_file(ROOT / f"configs/trainers/{method}/{cfg}.yaml")
        assert expected == node.OPTIM.MAX_EPOCH, method
