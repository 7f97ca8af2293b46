"""The LaTeX of a study's tables, and the sentences of its first page."""

import pytest
from finished import study_of, summarise

from experiments.studies.first_page import headlines, overview
from experiments.studies.render import Cell, Table, latex

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("of_coop", "words"),
    [
        ((50, 50, 50), "5.0 points above CoOp. The 3 seeds show that it is better (95% interval +2.5 to +7.5)."),
        ((40, 56, 60), "do not show that it is better (95% interval -21.0 to +27.0; they could show a"),
        ((50, 51, 52), "4.0 points above CoOp. All 3 seeds have the same difference."),
        ((40,), "10.0 points above CoOp. With 1 complete seed, nothing says how sure this is."),
        ((40, None, None), "15.0 points above CoOp. With 1 complete seed, nothing says how sure this is."),
    ],
)
def test_the_first_page_says_how_sure_the_first_place_is(of_coop, words, tmp_path):
    values = {"CoOp": of_coop, "MPL": (54, 55, 56) if len(of_coop) > 1 else (50,)}

    def accuracy(run):
        choose = [{"what": "epoch", "split": "val", "test_images": 0}] if run.variant.name == "MPL" else []
        value = values[run.variant.name][run.seed]
        return value and (value, {"data_use": {"choose": choose}})

    summary = summarise(study_of(tmp_path, ("CoOp", "MPL"), seeds=tuple(range(len(of_coop)))), accuracy)
    (sentence,) = headlines(summary)
    assert sentence.startswith("few_shot: MPL is first with 16 shots 5") and words in sentence
    (table,) = overview(summary)
    assert [(row[0].text, row[-1].text) for row in table.rows] == [("MPL", "epoch: val"), ("CoOp", "nothing")]


ROWS = [
    [Cell("x ± -1.00", 1), Cell("(-0.50 to -0.20) ~^\\$|", 2)],
    [Cell("[1ex]"), Cell("a-1")],
    [Cell(" [x]"), Cell(" y")],
    [Cell("*"), Cell("-")],
]
HARD = Table("50 % of {it} & #1", ["a_b", "<c>"], ROWS, "n=2")


def test_latex_escapes_special_characters():
    text = latex([HARD])
    assert text.startswith("% 50 \\% of \\{it\\} \\& \\#1\n" r"\begin{tabular}{lc}")
    hard = r"\textbf{x $\pm$ $-$1.00} & \underline{($-$0.50 to $-$0.20) \textasciitilde{}\textasciicircum{}"
    assert hard + r"\textbackslash{}\$$|$}" in text and text.isascii()
    assert "\n{}[1ex] & a-1 \\\\\n{}[x] &  y \\\\\n{}* & - \\\\\n" in text  # after the \\ of the row above
