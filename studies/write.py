"""The tables of a study as text, Markdown and LaTeX."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from common.results import MEASURES, OTHER_MEASURES, Measure
from runs.config import read_chosen
from trainers import methods

from .compare import LEVEL, POWER, between, signed
from .plan import Search
from .study import ORACLE
from .tables import MARK, MARKED, Summary, as_shown, marked, shots_label

MISSING = "-"
AUROC = Measure("")  # of out-of-distribution images
FORMS = {key: measure.form for key, measure in (MEASURES | OTHER_MEASURES).items()}


class Cell(NamedTuple):
    """A cell's text, and its rank: 1 marks the best of a column, 2 the second, 0 nothing."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""


def build_tables(summary: Summary) -> list[Table]:
    """For each part of each protocol: accuracies, the paper's results, and tests; then the chosen
    settings.
    """
    tables = []
    for (protocol, part), cells in summary.cells.groupby(["protocol", "part"], sort=False):
        if cells["mean"].notna().any():
            tables += [
                accuracies(summary, protocol, part, cells),
                *compared_with_paper(protocol, part, cells),
            ]
            tables += significance(summary, protocol, part)
            tables += measured(summary, protocol, part)
    return tables + chosen(summary)


def chosen(summary: Summary) -> list[Table]:
    """The settings that trials have chosen; no table for a study without `choose`."""
    by = summary.study.choose.by
    choices = [row_of(search) for search in summary.study.searches if search.file.is_file()]
    note = f"Chosen by {by}, one choice for all seeds; in brackets the number of combinations."
    if by == ORACLE:
        note += f" {MARKED}."
    frame = pd.DataFrame(choices, columns=["protocol", "shots", "method", "dataset", "text"])
    frame["method"] = [marked(name, by == ORACLE) for name in frame["method"]]
    tables = []
    for (protocol, shots), cells in frame.groupby(["protocol", "shots"], sort=False):
        title = f"{protocol}, {shots_label(shots)}: chosen settings"
        tables.append(Table(title, *grid(cells, "dataset", lambda row: Cell(row.text)), note))
    return tables


def row_of(search: Search) -> tuple[str, int, str, str, str]:
    """A choice that was made: its protocol, shots, method, dataset and settings."""
    settings = read_chosen(str(search.file)).settings
    words = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())
    text = f"{words} (of {len(search.trials)})"
    return search.protocol, search.shots, search.variant.name, search.dataset, text


def measured(summary: Summary, protocol: str, part: str) -> list[Table]:
    """The other measures of the tests of one table; no table if the runs did not record them."""
    if part == "H":
        return []
    means = summary.measures.query("protocol == @protocol and part == @part").set_index("method")
    means = (
        means.drop(columns=["protocol", "part", "error_rate"])
        .dropna(axis="columns", how="all")
        .dropna(how="all")
    )
    if not {"ece", "nll"} & set(means.columns):
        return []
    columns = {
        key: means[key].map(partial(number, form=FORMS.get(key, AUROC.form))) for key in means
    }
    rows = [list(map(Cell, row)) for row in pd.DataFrame(columns).itertuples()]
    note = (
        f"Averages over {', '.join(summary.averaged(protocol))}, and over seeds. In %, but NLL "
        "(nats) and the Brier score (0 to 2); ECE has 15 bins. Lower is better for ECE, NLL and "
        "the Brier score."
    )
    if any(column.startswith("AUROC") for column in means):
        note += " AUROC: of MCM, these images against those of the table (new: of the new classes)."
    if "OpenworldAUC" in means:
        note += (
            " OpenworldAUC: how often a base image has a larger probability of a base class than a "
            "new image, and both are classified correctly among their own half of the classes."
        )
    header = ["method", *(MEASURES[key].label if key in MEASURES else key for key in means)]
    return [Table(f"{protocol}, {part}: calibration and more", header, rows, note)]


def about_data(summary: Summary, protocol: str, part: str) -> str:
    """A sentence on the data behind one table, if its runs recorded it."""
    parts = ["base", "new"] if part == "H" else [part]
    runs = summary.runs[summary.runs["protocol"] == protocol]
    runs = runs[runs["part"].isin(parts)]
    known = runs.dropna(subset="images")
    if known.empty:
        return ""
    words = about_kinds(summary, set(runs["method"]))
    most = int(known["evaluations"].max())
    selected = int(runs["selected_on_test"].sum())
    often = "once" if most == 1 else f"up to {most} times"
    note = (
        f" Data: {words}; test images evaluated {often} by a run; "
        f"{selected} of {len(runs)} runs chose on them"
    )
    unknown = len(runs) - len(known)
    return note + (f"; {unknown} runs did not record their images." if unknown else ".")


def about_kinds(summary: Summary, methods: set[str]) -> str:
    """The methods of a table that are not inductive."""
    kinds = {name: variant.kind for name, variant in summary.variants.items() if name in methods}
    others = [f"{name} {kind}" for name, kind in kinds.items() if kind != "inductive"]
    if others:
        return f"{', '.join(others)} (other methods inductive); ranked within a kind"
    return "all methods inductive"


def number(value: float, form: str = ".2f") -> str:
    return MISSING if pd.isna(value) else format(value, form)


def format_p(p: float) -> str:
    return "<0.001" if p < 0.0005 else number(p, ".3f")


def grid(
    cells: pd.DataFrame, key: str, entry: Callable[[Any], Cell]
) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of methods x the values of `key`; `entry` makes a Cell of a row of
    `cells`.
    """
    at = {(row.method, getattr(row, key)): entry(row) for row in cells.itertuples()}
    columns = list(cells[key].unique())
    rows = [
        [Cell(name), *(at.get((name, x), Cell(MISSING)) for x in columns)]
        for name in cells["method"].unique()
    ]
    return ["method", *columns], rows


def accuracy(summary: Summary, cell: Any) -> Cell:
    """The mean of a row of `Summary.cells`, its spread or interval, n if runs are missing, and the
    mark.
    """
    width = getattr(cell, summary.spread)
    spread = "" if pd.isna(width) else f" ± {width:.2f}"
    missing = f" (n={cell.runs})" if cell.runs < cell.seeds and pd.notna(cell.mean) else ""
    text = marked(f"{number(cell.mean)}{spread}{missing}", cell.selected_on_test)
    return Cell(text, int(cell.rank) if cell.rank <= 2 else 0)  # false for NaN


def about_mark(cells: pd.DataFrame) -> str:
    """A sentence on the mark, if a cell has it."""
    selected = cells["selected_on_test"]
    if not selected.any():
        return ""
    return (
        f" {MARKED}."
        if selected[cells["mean"].notna()].all()
        else f" {MARKED}; not ranked with the others."
    )


def describe_spread(summary: Summary) -> str:
    seeds = len(summary.study.seeds)
    over = (
        f"{seeds} seed{'s' if seeds > 1 else ''}, or over the n finished ones (average: on all "
        "datasets)"
    )
    return (
        f"Accuracy in %: mean of {over}; ±: {summary.spread_name}; first and second best "
        "marked; -: missing."
    )


def accuracies(summary: Summary, protocol: str, part: str, cells: pd.DataFrame) -> Table:
    note = describe_spread(summary)
    if part == "all":
        note += " all: base and new classes together."
    if part == "H":
        note += (
            " H: harmonic mean of the mean base and the mean new accuracy; its spread is over "
            "the H of each seed."
        )
    if protocol == "cross_dataset":
        note += f" Trained on {summary.study.source}, which is not in the average."
    caveats = {
        name: methods()[summary.variants[name].method].caveat for name in cells["method"].unique()
    }
    note += "".join(f" {name}: {caveat}." for name, caveat in caveats.items() if caveat)
    note += about_mark(cells) + about_data(summary, protocol, part)
    return Table(f"{protocol}, {part}", *grid(cells, "dataset", partial(accuracy, summary)), note)


def compared_with_paper(protocol: str, part: str, cells: pd.DataFrame) -> list[Table]:
    """The paper's results and the difference to them in points; no table if it has none."""

    def entry(row) -> Cell:
        difference = (
            ""
            if pd.isna(row.difference)
            else marked(f" ({signed(row.difference)})", row.selected_on_test)
        )
        return Cell(number(row.paper) + difference)

    compared = cells[cells["paper"].notna().groupby(cells["method"]).transform("any")]
    note = "The paper's accuracy in %, and in brackets how many points the result above exceeds it."
    if compared["selected_on_test"].any():
        note += f" {MARKED} of the result above."
    table = Table(f"{protocol}, {part}: the paper", *grid(compared, "dataset", entry), note)
    return [table] if table.rows else []


PAIRED = (
    "Mean difference in points, paired by dataset and seed; two-sided p, from three pairs on. "
    "Holm: corrected for the number of tests in the column. Difference: with its 95% t-interval "
    "over seeds. Smallest visible: the smallest true difference that so many seeds with this "
    f"spread would show ({POWER:.0%} of the time, at p < 0.05). Seeds: t-test of each seed's "
    "average over the datasets. Datasets: Wilcoxon's signed-rank test of their means."
)


def significance(summary: Summary, protocol: str, part: str) -> list[Table]:
    """The tests of one table; no table if there are none."""
    if summary.tests.empty:
        return []
    tests = summary.tests.query("protocol == @protocol and part == @part")
    if tests.empty:
        return []
    rows = []
    for row in tests.itertuples():
        interval = "" if pd.isna(row.interval[0]) else f" ({between(row.interval)})"
        words = [marked(row.against, row.against in row.selected_on_test)]
        words += [signed(row.difference) + interval, number(row.smallest)]
        words += [p_value(row.p_seeds, row.holm_seeds, row.seeds)]
        words += [p_value(row.p_datasets, row.holm_datasets, row.datasets)]
        rows.append(list(map(Cell, words)))
    note = PAIRED
    selected = list(dict.fromkeys(tests["selected_on_test"].sum()))
    if selected:
        note += f" {MARKED} of {', '.join(selected)}; a comparison with methods without {MARK} is "
        note += "not fair."
    note += over_datasets(summary, protocol, part)
    focus = marked(summary.focus, summary.focus in tests.iloc[0]["selected_on_test"])
    header = ["against", "difference", "smallest visible", "p, seeds", "p, datasets"]
    return [Table(f"{protocol}, {part}: {focus} against the others", header, rows, note)]


def p_value(p: float, corrected: float, n: int) -> str:
    """A p-value, the one corrected for several tests, and the number of pairs."""
    text = MISSING if pd.isna(p) else f"{format_p(p)}, Holm {format_p(corrected)}"
    return f"{text} (n={n})"


def over_datasets(summary: Summary, protocol: str, part: str) -> str:
    """A sentence for each kind of method on the test of all its methods over datasets, if there are
    enough.
    """
    notes = ""
    for kind in summary.kinds:
        if ranked := ranking(summary, protocol, part, kind):
            of_kind = f" {kind}" * (len(summary.kinds) > 1)
            ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in ranked.ranks.items())
            notes += (
                f" All{of_kind} methods over {ranked.datasets} datasets: average ranks {ranks}; "
                f"Friedman's test, p = {format_p(ranked.p)}"
            )
            if ranked.p < 0.05:
                difference = f"{ranked.difference:.2f}"
                notes += f"; average ranks differ if they are {difference} apart (Nemenyi)"
            notes += "."
    return notes


def markdown(tables: list[Table]) -> str:
    """A heading, the grid and the note of each table."""
    return "\n".join(
        f"## {table.title}\n\n{markdown_grid(table)}\n\n{table.note}\n" for table in tables
    )


def markdown_grid(table: Table) -> str:
    """The header and the rows."""
    header, *rows = texts(table, lambda text: text.replace("|", "\\|"), ["{}", "**{}**", "_{}_"])
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def texts(table: Table, escape: Callable[[str], str], marks: Sequence[str]) -> Iterator[list[str]]:
    """The texts of the header and of each row; `marks` are the forms of cells by their ranks."""
    yield list(map(escape, table.header))
    for row in table.rows:
        yield [marks[cell.rank].format(escape(cell.text)) for cell in row]


LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$", "†": r"$\dagger$", "\n": " "}
)


def escape_latex(text: str) -> str:
    """Text as LaTeX; a hyphen before a number becomes a minus. \\\\ must not find [ or *; it skips
    spaces.
    """
    return re.sub(
        r"(^|[( ])-(?=\d)", r"\1$-$", re.sub(r"^\s*(?=[\[*])", "{}", text.translate(LATEX))
    )


def latex(tables: list[Table]) -> str:
    """A `tabular` for each table, after a comment with its title. No package is needed."""
    marks = ["{}", r"\textbf{{{}}}", r"\underline{{{}}}"]
    lines = []
    for table in tables:
        columns = "c" * (len(table.header) - 1)
        header, *rows = map(" & ".join, texts(table, escape_latex, marks))
        lines.append(f"% {escape_latex(table.title)}")
        lines.append(rf"\begin{{tabular}}{{l{columns}}}")
        lines.append(rf"\hline {header} \\ \hline")
        lines += [rf"{row} \\" for row in rows]
        lines += [r"\hline", r"\end{tabular}", ""]
    return "\n".join(lines)


# Fewer methods have a test of two; with fewer datasets the tests find almost nothing
METHODS = 3
DATASETS = 5


class Ranking(NamedTuple):
    """The ranks of methods over datasets (Demšar, JMLR 2006)."""

    # Average rank by method, ascending; accuracies equal to two decimals share theirs
    ranks: pd.Series
    datasets: int  # their number
    # Of Friedman's test, that all methods have the same ranks; 1 if they are equal on every dataset
    p: float
    difference: float  # average ranks that differ by less are not shown to differ (Nemenyi at 5%)


def ranking(summary: Summary, protocol: str, part: str, kind: str) -> Ranking | None:
    """The ranks of the methods of a kind (`Method.kind`) with a result on every dataset of the
    average, none of them selected on test images; None for too few methods or datasets."""
    from scipy.stats import friedmanchisquare, studentized_range  # slow to import

    cells = summary.cells.query("protocol == @protocol and part == @part and kind == @kind")
    selected = cells.loc[cells["selected_on_test"], "method"]
    cells = cells[
        cells["dataset"].isin(summary.averaged(protocol)) & ~cells["method"].isin(selected)
    ]
    means = as_shown(cells.pivot(index="method", columns="dataset", values="mean").dropna())
    methods, datasets = means.shape
    if methods < METHODS or datasets < DATASETS:
        return None
    ranks = means.rank(ascending=False).mean(axis="columns").sort_values(kind="stable")
    p = float(friedmanchisquare(*means.to_numpy()).pvalue) if (means.nunique() > 1).any() else 1.0
    quantile = studentized_range.ppf(LEVEL, methods, math.inf) / math.sqrt(2)
    return Ranking(
        ranks, datasets, p, quantile * math.sqrt(methods * (methods + 1) / (6 * datasets))
    )
