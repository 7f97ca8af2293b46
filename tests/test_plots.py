"""The pictures of a study: their content and their files."""

from xml.etree import ElementTree

import pytest
from dassl.engine import TRAINER_REGISTRY
from finished import finish, finish_all
from matplotlib import pyplot as plt
from PIL import Image

from experiments.studies import plots
from experiments.studies.progress import collect_results
from experiments.studies.spec import Study, Variant
from experiments.studies.tables import Summary
from trainers import PromptTrainer

pytestmark = pytest.mark.slow

NAMES = ("ZeroshotCLIP", "CoOp", "MPL")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def summarised(tmp_path):
    """`summarised(*protocols, **settings)` -> the summary of a finished study of three methods on two datasets."""

    def summarised(*protocols, names=NAMES, measured=(), **settings):
        variants = tuple(Variant(name, name, "small", "small_cross_datasets") for name in names)
        sets = ("small_land", "small_counts")
        usual = {"seeds": (1, 2), "source": "small_source", "targets": sets, "output": tmp_path}
        study = Study(variants, sets, protocols, **usual | settings)
        finish_all(study, **dict(measured))
        return Summary(study, collect_results(study))

    return summarised


def points(ax) -> dict[str, list[tuple[float, float]]]:
    """The points of error bars, by label."""
    return {bars.get_label(): [tuple(xy) for xy in bars[0].get_xydata()] for bars in ax.containers}


def test_accuracy_time_of_both_protocols(summarised):
    summary = summarised("base2new", "cross_dataset")
    base, new, both, cross = plots.accuracy_time(summary).axes
    assert (new.get_title(), new.get_ylabel()) == ("base2new, new", "accuracy on new classes (%)")
    assert (both.get_title(), cross.get_title()) == ("base2new, H", "cross_dataset, all classes")
    means = summary.cells.set_index(["part", "dataset", "method"])["mean"]
    for ax, part in ((base, "base"), (new, "new"), (both, "H"), (cross, "all classes")):
        assert ax.get_xlabel() == "training time of a run (seconds)\ncpu"
        assert points(ax) == {name: [(10.0 * len(name), means[part, "average", name])] for name in ("CoOp", "MPL")}
        lines = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
        assert lines["ZeroshotCLIP (no training)"] == means[part, "average", "ZeroshotCLIP"]


def test_several_devices_have_separate_points(summarised):
    summary = summarised("base2new")
    summary.runs.loc[summary.runs["seed"] == 2, "device"] = "H100"
    ax = plots.accuracy_time(summary).axes[1]
    assert points(ax).keys() == {f"{name} ({device})" for name in ("CoOp", "MPL") for device in ("cpu", "H100")}
    assert "2 devices: not comparable" in ax.get_xlabel()


def test_few_shot_curves_have_every_number_of_shots(summarised):
    summary = summarised("few_shot", shots=(1, 2, 4))
    average, land, counts = plots.few_shot(summary).axes
    assert [ax.get_title() for ax in (average, land, counts)] == ["average", "small_land", "small_counts"]
    cells = summary.cells.set_index(["method", "dataset", "part"])["mean"]
    curve = [
        (shots, cells["MPL", "small_land", part]) for shots, part in ((1, "1 shot"), (2, "2 shots"), (4, "4 shots"))
    ]
    assert points(land)["MPL"] == curve
    assert points(average).keys() == set(NAMES)


@pytest.mark.parametrize(("names", "reference"), [(NAMES, "ZeroshotCLIP"), (NAMES[1:], "CoOp")])
def test_gains_are_over_the_baseline(summarised, names, reference):
    summary = summarised("cross_dataset", names=names)
    (ax,) = plots.gains(summary).axes
    cells = summary.cells.set_index(["method", "dataset"])["mean"]
    bars = dict(zip((label.get_text() for label in ax.get_yticklabels()), ax.containers[0].datavalues, strict=True))
    expected = {
        name: cells["MPL", name] - cells[reference, name] for name in (*summary.datasets("cross_dataset"), "average")
    }
    assert bars == pytest.approx(expected)
    assert ax.get_xlabel() == f"MPL over {reference} (points)"


def test_new_method_is_in_every_picture(summarised, monkeypatch):
    class Own(PromptTrainer):
        config_folder = "CoOp"

    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Own", Own)
    summary = summarised("base2new", names=("CoOp", "Own", "ZeroshotCLIP"), seeds=(1, 2, 3))
    assert (summary.focus, summary.baseline) == ("Own", "ZeroshotCLIP")
    assert set(summary.tests["against"]) == {"CoOp", "ZeroshotCLIP"}
    assert plots.gains(summary).axes[0].get_xlabel() == "Own over ZeroshotCLIP (points)"
    assert "Own" in points(plots.accuracy_time(summary).axes[0])
    styles = plots.plot_styles(summary).values()
    for key in ("marker", "color"):
        assert len({style[key] for style in styles}) == len(styles)


@pytest.mark.parametrize(
    ("names", "focus"),
    [
        ({"a": "MPL", "MPL": "MPL", "b": "MPL", "c": "VPT"}, "MPL"),
        ({"a": "MPL", "b": "MPL", "c": "VPT"}, "b"),
        ({"a": "CoOp", "b": "VPT", "c": "ZeroshotCLIP"}, "b"),
        ({"c": "ZeroshotCLIP"}, None),
    ],
)
def test_focus_is_mpl_or_the_last_learning_method(names, focus, tmp_path):
    variants = tuple(Variant(name, method, "small") for name, method in names.items())
    study = Study(variants, ("small_land",), seeds=(1,), output=tmp_path)
    finish(study.runs()[0], 50.0)
    assert Summary(study, collect_results(study)).focus == focus


def test_pictures_are_written_as_png_svg_and_pdf_and_not_cut_off(summarised, tmp_path):
    summary = summarised("base2new", "cross_dataset", "few_shot", shots=(1, 16), seeds=(1, 2, 3))
    files = [file for *_, files in plots.draw(summary, tmp_path) for file in files]
    assert [file.name for file in files] == [
        f"{name}.{kind}" for name in ("accuracy_time", "few_shot", "gains") for kind in ("png", "svg", "pdf")
    ]
    for file in files:
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
            continue
        if file.suffix == ".pdf":
            assert file.read_bytes().startswith(b"%PDF-")
            continue
        with Image.open(file) as image:
            pixels = image.convert("L")
            edges = [pixels.crop((x, 0, x + 1, pixels.height)) for x in (0, pixels.width - 1)]
            assert all(edge.getextrema() == (255, 255) for edge in edges), file.name
