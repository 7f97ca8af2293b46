"""The pictures of a study: their content and their files; the ranks of methods over datasets."""

from xml.etree import ElementTree

import pytest
from finished import different, study_of, summarise
from matplotlib import pyplot as plt
from PIL import Image
from scipy import stats

from studies import plots
from studies.write import over_datasets, ranking

pytestmark = pytest.mark.slow

NAMES = ("ZeroshotCLIP", "CoOp", "MPL")
PAIR = ("small_land", "small_counts")
SETS = ("dtd", "eurosat", "food101", *PAIR, "sun397")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def summarised(tmp_path):
    """`summarised(*protocols, **settings)` -> the summary of a finished study of three methods on
    two datasets.
    """

    def summarised(*protocols, names=NAMES, **settings):
        usual = {"datasets": PAIR, "seeds": (1, 2), "source": "small_source", "targets": PAIR}
        return summarise(study_of(tmp_path, names, *protocols, **usual | settings), different)

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
        assert points(ax) == {
            name: [(10.0 * len(name), means[part, "average", name])] for name in ("CoOp", "MPL")
        }
        lines = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
        assert lines["ZeroshotCLIP (no training)"] == means[part, "average", "ZeroshotCLIP"]


def test_a_point_of_accuracy_is_as_high_in_each_panel_and_no_point_is_at_an_edge(
    summarised, tmp_path, monkeypatch
):
    monkeypatch.setattr(plots, "save", lambda figure, *_: figure)
    summary = summarised("base2new", "cross_dataset")
    figures = [figure for *_, figure in plots.draw(summary, tmp_path)]
    heights = {round(high - low, 6) for ax in figures[0].axes for low, high in [ax.get_ylim()]}
    assert len(heights) == 1
    for ax in figures[0].axes:
        left, right = ax.get_xlim()
        times = [x for places in points(ax).values() for x, _ in places]
        assert left > 0 and min(times) - left == pytest.approx(right - max(times))
        assert right - max(times) > 0.1 * (right - left)


def test_pictures_are_written_as_png_svg_and_pdf_and_not_cut_off(summarised, tmp_path):
    names = {"ZeroshotCLIP": "ZeroshotCLIP", "CoOp": "CoOp", r"lr $\foo$ $_$": "MPL"}  # no formula
    summary = summarised(
        "base2new", "cross_dataset", "few_shot", names=names, shots=(1, 16), seeds=(1, 2, 3)
    )
    files = [file for *_, files in plots.draw(summary, tmp_path) for file in files]
    assert [file.name for file in files] == [
        f"{name}.{kind}" for name in ("accuracy_time", "few_shot") for kind in ("png", "svg", "pdf")
    ]
    for png, svg, pdf in zip(files[::3], files[1::3], files[2::3], strict=True):
        assert ElementTree.parse(svg).getroot().tag.endswith("svg") and pdf.read_bytes().startswith(
            b"%PDF-"
        )
        assert "<!-- CoOp -->" in svg.read_text()  # a legend
        with Image.open(png) as image:
            pixels = image.convert("L")
            edges = [pixels.crop((x, 0, x + 1, pixels.height)) for x in (0, pixels.width - 1)]
            assert all(edge.getextrema() == (255, 255) for edge in edges), png.name


NEMENYI = {3: 2.343, 4: 2.569}  # q at 0.05 for k methods (Demšar, JMLR 2006, table 5a)


@pytest.mark.parametrize("k", [3, 4])
def test_ranks_over_datasets_are_those_of_the_published_formulas(k, tmp_path):
    values = {
        "a": [90] * 6,
        "b": (80, 80, 85, 80, 80, 80),
        "c": (80, 70, 91, 70, 70, 70),
        "d": range(6),
    }
    study = study_of(tmp_path, dict.fromkeys("abcd"[:k], "MPL"), datasets=SETS)
    summary = summarise(study, lambda run: values[run.variant.name][SETS.index(run.dataset)])
    found = ranking(summary, "few_shot", "16 shots", "inductive")
    expected = {"a": 7 / 6, "b": 13.5 / 6, "c": 15.5 / 6, "d": 4}
    assert found.ranks.to_dict() == pytest.approx({name: expected[name] for name in "abcd"[:k]})
    n = len(SETS)
    chi2 = 12 * n / (k * (k + 1)) * (sum(found.ranks**2) - k * (k + 1) ** 2 / 4)
    ties = 6 / (n * (k**3 - k))  # of the two that share a rank
    assert found.p == pytest.approx(stats.chi2.sf(chi2 / (1 - ties), k - 1))
    assert found.difference == pytest.approx(NEMENYI[k] * (k * (k + 1) / (6 * n)) ** 0.5, rel=1e-3)
    assert "average ranks a 1.17, b 2.25, c 2.58" in over_datasets(summary, "few_shot", "16 shots")


def test_equal_methods_have_a_p_of_one(tmp_path):
    study = study_of(tmp_path, dict.fromkeys("abc", "MPL"), datasets=SETS)
    summary = summarise(study, lambda run: 70.0)
    found = ranking(summary, "few_shot", "16 shots", "inductive")
    assert (found.p, list(found.ranks)) == (1, [2, 2, 2])
    assert "Friedman's test, p = 1.000." in over_datasets(summary, "few_shot", "16 shots")
