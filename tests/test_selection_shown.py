"""The mark of results that were selected on test images: tables, pictures, the report, lines, logs, exports."""

import json
import re

import pytest
import yaml
from finished import finish, finish_all
from matplotlib import pyplot as plt

import parse_test_res
from common.start import ROOT
from experiments import results as base2new
from experiments.results import FILE, SELECTED
from experiments.studies import command as study_command
from experiments.studies import plots
from experiments.studies.first_page import overview
from experiments.studies.progress import collect_results
from experiments.studies.render import build_tables, latex, markdown
from experiments.studies.reproduce import compared_with_authors
from experiments.studies.spec import Study, Variant
from experiments.studies.study_file import load
from experiments.studies.tables import MARK, MARKED, Summary
from inference import export

pytestmark = pytest.mark.slow

CHOICE = {"what": "epoch", "dataset": "x", "classes": "all", "split": "val", "images": 8, "test_images": 8}
SELECTED_RUN = {"data_use": {"choose": [CHOICE]}}
HONEST_RUN = {"data_use": {"choose": [CHOICE | {"test_images": 0}]}}
SETS = ("small_land", "small_counts")
ON_TEST = ("TEST.FINAL_MODEL", "best_val", "TEST.SELECT_ON_TEST", True)  # settings of a run on ImageNet


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def summarised(tmp_path):
    """`summarised({(method, dataset), ...}, protocol, methods)` -> a finished study; those runs have the mark.

    The first method reaches 80 %, the second 70, the third 60, one point more with each seed.
    """

    def summarised(marked, protocol="few_shot", methods=("CoOp", "MPL", "VPT"), backbone="", **settings):
        variants = tuple(Variant(name, name, "small", "small_cross_datasets") for name in methods)
        usual = {"seeds": (1, 2, 3), "output": tmp_path / "out", "source": "small_source", "targets": SETS}
        study = Study(variants, SETS, (protocol,), backbone=backbone, **usual | settings)
        for run in study.runs():
            selected = (run.variant.name, run.dataset) in marked and run.classes != "new"
            accuracy = 80 - 10 * methods.index(run.variant.name) + run.seed
            finish(run, accuracy, **(SELECTED_RUN if selected else HONEST_RUN))
        return Summary(study, collect_results(study))

    return summarised


def row(table, method):
    (cells,) = (cells for cells in table.rows if cells[0].text.startswith(method))
    return [(cell.text, cell.rank) for cell in cells[1:]]


def accuracies(summary):
    return next(table for table in build_tables(summary) if table.title == "few_shot, 16 shots")


# Tables


def test_marked_cells_have_no_rank_beside_others(summarised):
    table = accuracies(summarised({("CoOp", "small_land")}))
    marked, clean = f"82.00 ± 0.82 {MARK}", "82.00 ± 0.82"
    assert row(table, "CoOp") == [(marked, 0), (clean, 1), (marked, 0)]  # the second dataset is clean
    assert row(table, "MPL") == [("72.00 ± 0.82", 1), ("72.00 ± 0.82", 2), ("72.00 ± 0.82", 1)]
    assert row(table, "VPT") == [("62.00 ± 0.82", 2), ("62.00 ± 0.82", 0), ("62.00 ± 0.82", 2)]
    assert table.note.endswith(f" {MARKED}; not ranked with the others.")


@pytest.mark.parametrize(
    ("marked", "ranks"), [(("CoOp", "MPL"), [0, 0, 0]), (("CoOp", "MPL", "VPT"), [1, 2, 0])], ids=["two", "all"]
)
def test_ranks_are_among_results_of_one_kind(marked, ranks, summarised):
    """Nothing is bold where one result alone has no mark."""
    table = accuracies(summarised({(method, name) for method in marked for name in SETS}))
    assert [row(table, method)[0][1] for method in ("CoOp", "MPL", "VPT")] == ranks


def test_h_and_averages_of_a_marked_half_are_marked(summarised):
    summary = summarised({("MPL", "small_land")}, "base2new")
    cells = summary.cells[summary.cells["selected_on_test"]]
    assert {tuple(names) for names in cells[["part", "method", "dataset"]].to_numpy()} == {
        (part, "MPL", name) for part in ("base", "H") for name in ("small_land", "average")
    }
    (table,) = overview(summary)
    in_columns = [MARK in text for text, _ in row(table, "MPL")]
    assert in_columns == [True, True, False, False, True]  # H, base, new, time, choice
    assert table.note.endswith(f" {MARKED}; not ranked with the others.")
    assert summary.warnings == [f"3 of 36 runs were selected on test images, their results have the mark {MARK}"]


@pytest.mark.parametrize(
    ("method", "focus", "others"),
    [("CoOp", "MPL", [f"CoOp {MARK}", "VPT"]), ("MPL", f"MPL {MARK}", ["CoOp", "VPT"])],
)
def test_significance_names_the_marked_methods(method, focus, others, summarised):
    table = next(table for table in build_tables(summarised({(method, "small_land")})) if "against" in table.title)
    assert table.title.endswith(f": {focus} against the others")
    assert [cells[0].text for cells in table.rows] == others
    assert table.note.endswith(f" {MARKED} of {method}; a comparison with methods without {MARK} is not fair.")


def test_mark_in_markdown_latex_and_json(summarised):
    summary = summarised({("CoOp", "small_land")})
    tables = [*overview(summary), *build_tables(summary)]
    text = markdown(tables)
    assert f"| CoOp | 82.00 ± 0.82 {MARK} |" in text and text.count(f"{MARKED}; not ranked") == 2
    assert r"$\dagger$" in latex(tables)
    records = summary.records()
    assert sum(run["selected_on_test"] for run in records["runs"]) == 3
    assert [test["selected_on_test"] for test in records["tests"]] == [["CoOp"], []]


def test_difference_to_the_paper_and_to_authors_is_marked(tmp_path):
    study = Study((Variant("MPL", "MPL", "vit_b4_c1_add2_rm1"),), ("dtd",), seeds=(1,), output=tmp_path)
    finish_all(study, **SELECTED_RUN)
    table = next(table for table in build_tables(Summary(study, collect_results(study))) if "paper" in table.title)
    assert table.rows[0][1].text.endswith(f") {MARK}") and table.note.endswith(f"{MARKED} of the result above.")
    study = Study((Variant("MaPLe", "MaPLe", "vit_b16_c2_ep5_batch4_2ctx"),), ("dtd",), seeds=(1,), output=tmp_path)
    finish_all(study, **SELECTED_RUN)
    (table,) = compared_with_authors(Summary(study, collect_results(study)))
    assert table.rows[0][0].text == f"these checkpoints {MARK}" and table.note.endswith(f"{MARKED}.")


# Pictures


def marks(ax):
    return [tuple(text.xy) for text in ax.texts if text.get_text() == MARK]


def test_results_are_marked_in_every_picture(summarised):
    summary = summarised({("MPL", "small_land")}, "base2new")
    base, new, _ = plots.accuracy_time(summary).axes
    assert marks(base) == [(2.0, pytest.approx(72))] and marks(new) == []
    labels = plots.gains(summary).axes[0].get_yticklabels()
    assert {text.get_text() for text in labels} == {f"small_land {MARK}", "small_counts", f"average {MARK}"}


def test_few_shot_points_are_marked_and_the_files_explain_the_mark(summarised, tmp_path):
    summary = summarised({("CoOp", "small_land")}, shots=(1, 16))
    average, land, counts = plots.few_shot(summary).axes
    assert marks(land) == [(1, pytest.approx(82)), (16, pytest.approx(82))] == marks(average)
    assert marks(counts) == []
    labels = {bars.get_label() for bars in counts.containers}
    assert labels == {f"CoOp {MARK}", "MPL", "VPT"}
    drawn = {name: file.read_text() for name, _, (file,) in plots.draw(summary, tmp_path, ["svg"])}
    assert drawn.keys() == {"few_shot", "gains"}
    assert all(f"<!-- {MARKED} -->" in content for content in drawn.values())


def test_tables_and_pictures_without_the_mark_do_not_explain_it(summarised, tmp_path):
    summary = summarised(set(), shots=(1, 16))
    tables = [*overview(summary), *build_tables(summary)]
    assert MARK not in markdown(tables) + latex(tables) and "dagger" not in latex(tables)
    assert summary.warnings == [] and not summary.cells["selected_on_test"].any()
    for *_, (file,) in plots.draw(summary, tmp_path, ["svg"]):
        assert MARKED not in file.read_text()


# The report, and other readers


def test_report_marks_and_explains(tmp_path, capsys):
    trainers = dict.fromkeys(("CoOp", "MPL"), "small")
    content = {"protocols": ["few_shot"], "trainers": trainers, "datasets": ["small_land"], "seeds": [1]}
    file = tmp_path / "marked.yaml"
    file.write_text(yaml.safe_dump(content | {"output": str(tmp_path / "out")}))
    for run in load(file).runs():
        finish(run, 50.0, **(SELECTED_RUN if run.variant.name == "MPL" else {}))
    study_command.main(["report", str(file)])
    page = (tmp_path / "out/studies/marked/report.html").read_text()
    assert f"50.00 {MARK}" in page and f"{MARKED}; not ranked with the others." in page
    assert f"Note: 1 of 2 runs were selected on test images, their results have the mark {MARK}." in page
    study_command.main(["tables", str(file)])
    assert "warning: 1 of 2 runs were selected on test images" in capsys.readouterr().err


LOG = """{}epoch [2/2] batch [1/1] loss 0.5 (0.5)
Finish training
=> result
* accuracy: {}%
"""


def test_averages_of_logs_say_how_many_runs_were_selected(tmp_path, monkeypatch, capsys):
    for place, mark in {"a/seed1": True, "a/seed2": False, "b/seed1": False}.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "log.txt").write_text(LOG.format(f"{SELECTED}: the epoch\n" * mark, 80))
    for given, lines in (
        ([tmp_path / "a"], ["* selected on test images: 1 of 2 runs"]),
        ([tmp_path / "b"], []),
        (
            [tmp_path, "--multi-exp"],
            ["* selected on test images: 1 of 2 runs", "* selected on test images: 1 of 2 folders"],
        ),
    ):
        monkeypatch.setattr("sys.argv", ["parse_test_res.py", *map(str, given)])
        parse_test_res.main()
        printed = capsys.readouterr().out
        assert [line for line in printed.splitlines() if line.startswith("* selected")] == lines
        assert printed.count("accuracy: 80.00% (selected on test images)") == bool(lines)


def test_log_of_a_real_run_is_recognised(on_imagenet, monkeypatch, capsys):
    folder = on_imagenet("out/seed1", *ON_TEST)
    monkeypatch.setattr("sys.argv", ["parse_test_res.py", str(folder.parent)])
    parse_test_res.main()
    assert "* selected on test images: 1 of 1 runs" in capsys.readouterr().out


def test_model_card_of_an_export_says_it(on_imagenet, command, tmp_path):
    assert command(export, on_imagenet("out", *ON_TEST), "--to", tmp_path / "model").status == 0
    card = (tmp_path / "model/README.md").read_text()
    assert re.search(r"\| accuracy \| [\d.]+ % on 8 images, which chose the epoch or a setting \|", card)
    assert json.loads((tmp_path / "model/config.json").read_text())["training"]["selected_on_test"] is True


def test_one_line_reports_say_it(on_imagenet, command):
    base, new, clean = (
        on_imagenet(name, *choice, "DATASET.SUBSAMPLE_CLASSES", classes, options=["--quiet"])
        for name, classes, choice in (("base", "base", ON_TEST), ("new", "new", ON_TEST), ("clean", "new", ()))
    )
    for half, marks in ((new, 2), (clean, 1)):
        printed = command(base2new, base, half).printed.splitlines()
        assert sum(line.endswith(" (selected on test images)") for line in printed[:-1]) == marks
        assert printed[-1].startswith("Harmonic mean: ") and printed[-1].endswith("% (selected on test images)")
    assert "selected" not in command(base2new, clean).printed


DAMAGED = (3, {"choose": 3}, {"choose": [3]}, {"choose": [{}]}, {"choose": [{"test_images": "8"}]})


def test_damaged_record_in_results_gives_one_line(on_imagenet, command):
    folder = on_imagenet("out")
    whole = json.loads((folder / FILE).read_text())
    for record in DAMAGED:
        (folder / FILE).write_text(json.dumps(whole | {"data_use": record}))
        ended = command(base2new, folder)
        assert (ended.status, len(ended.errors)) == (2, 1) and f"{folder / FILE} is damaged" in ended.errors[0]


def test_results_without_the_record_are_read(on_imagenet, command):
    folder = on_imagenet("out")
    whole = json.loads((folder / FILE).read_text())
    old = {key: value for key, value in whole.items() if key not in ("data_use", "tested_epoch")}
    (folder / FILE).write_text(json.dumps(old))
    ended = command(base2new, folder)
    assert ended.status == 0 and ended.printed.startswith("MPL on ImageNet") and "selected" not in ended.printed


def test_few_shot_study_accepts_the_linear_probe_on_imagenet():
    study = load(ROOT / "studies/few_shot.yaml")
    accepted = {(run.variant.method, run.dataset) for run in study.runs() if "TEST.SELECT_ON_TEST" in run.arguments}
    assert accepted == {("LinearProbe", "imagenet")}
