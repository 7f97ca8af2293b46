"""The figures of a study as tables to read: Markdown, and a LaTeX document that compiles by itself."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from .tables import MARK, MARKED, Summary

MISSING = "-"


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
    """For each part of each protocol: accuracies, the paper's figures, and tests; then the training times."""
    tables = []
    for protocol, part in summary.parts:
        cells = select(summary.cells, protocol, part)
        if cells["mean"].notna().any():
            tables += [accuracies(summary, protocol, part, cells), *beside_paper(summary, protocol, part, cells)]
            tables += significance(summary, protocol, part)
    return [*tables, times(summary)]


def overview(summary: Summary) -> list[Table]:
    """For each protocol: the averages over datasets and the training time of every method."""
    tables = []
    for protocol in summary.study.protocols:
        parts = [part for name, part in summary.parts if name == protocol]
        cells = summary.cells[(summary.cells["protocol"] == protocol) & (summary.cells["dataset"] == "average")]
        shown = cells[cells["mean"].notna()]["method"].unique()
        at = {(row.method, row.part): row for row in cells.itertuples()}
        times = summary.times[summary.times["protocol"] == protocol]
        rows = []
        for method in shown:
            seconds = [(row.seconds, row.device) for row in times[times["method"] == method].itertuples()]
            several = times["device"].nunique() > 1
            taken = ", ".join(f"{value:.1f}" + f" ({device})" * several for value, device in seconds)
            ranks = [at[method, part].rank * (len(shown) > 1) for part in parts]
            texts = [accuracy(at[method, part]) for part in parts]
            marked = [Cell(text, int(rank) if rank <= 2 else 0) for text, rank in zip(texts, ranks, strict=True)]
            rows.append([Cell(method), *marked, Cell(taken or MISSING)])
        devices = ", ".join(times["device"].dropna().unique())
        note = f"{describe_spread(summary)} Averages over {', '.join(summary.averaged(protocol))}. "
        note += f"Training time: mean of a run{f' on {devices}' if devices else ''}."
        if rows:
            note += about_mark(cells)
            tables.append(Table(f"Summary: {protocol}", ["method", *parts, "training time (s)"], rows, note))
    return tables


def select(frame: pd.DataFrame, protocol: str, part: str) -> pd.DataFrame:
    return frame[(frame["protocol"] == protocol) & (frame["part"] == part)] if len(frame) else frame


def number(value: float, form: str = ".2f") -> str:
    return MISSING if pd.isna(value) else format(value, form)


def format_p(p: float) -> str:
    return "<0.001" if p < 0.0005 else number(p, ".3f")


def grid(summary: Summary, protocol: str, cells: pd.DataFrame, entry) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of methods x datasets; `entry(row of cells)` is a Cell."""
    columns = [*summary.datasets(protocol), "average"]
    at = {(row.method, row.dataset): entry(row) for row in cells.itertuples()}
    methods = cells["method"].unique()
    return ["method", *columns], [[Cell(name), *(at[name, column] for column in columns)] for name in methods]


def accuracy(cell) -> str:
    """The mean of a row of `Summary.cells`, its spread, n if runs are missing, and the mark."""
    spread = "" if pd.isna(cell.spread) else f" ± {cell.spread:.2f}"
    missing = f" (n={cell.runs})" if 0 < cell.runs < cell.seeds else ""
    return f"{number(cell.mean)}{spread}{missing}" + (f" {MARK}" if cell.selected_on_test else "")


def about_mark(cells: pd.DataFrame) -> str:
    """A sentence on the mark, if a cell has it."""
    marked = cells["selected_on_test"]
    if not marked.any():
        return ""
    return f" {MARKED}." if marked[cells["mean"].notna()].all() else f" {MARKED}; not ranked with the others."


def describe_spread(summary: Summary) -> str:
    seeds = len(summary.study.seeds)
    spread = "1.96 standard deviations / √n" if summary.ci95 else "population standard deviation"
    return (
        f"Accuracy in %: mean ± {spread} over {seeds} seed{'s' if seeds > 1 else ''}, or over n if fewer are finished; "
        "first and second best marked; -: missing."
    )


def accuracies(summary: Summary, protocol: str, part: str, cells: pd.DataFrame) -> Table:
    def entry(row) -> Cell:
        rank = row.rank if row.rank <= 2 and cells["method"].nunique() > 1 else 0  # false for NaN
        return Cell(accuracy(row), int(rank))

    note = describe_spread(summary)
    if part == "H":
        note += " H: harmonic mean of the mean base and the mean new accuracy; its spread is that of H over seeds."
    if protocol == "cross_dataset":
        note += f" Trained on {summary.study.source}, which is not in the average."
    caveats = {name: summary.variants[name].trainer.caveat for name in cells["method"].unique()}
    note += "".join(f" {name}: {caveat}." for name, caveat in caveats.items() if caveat)
    return Table(f"{protocol}, {part}", *grid(summary, protocol, cells, entry), note + about_mark(cells))


def beside_paper(summary: Summary, protocol: str, part: str, cells: pd.DataFrame) -> list[Table]:
    """The paper's figures and the difference to them in points; no table if it has none."""
    known = cells[cells["paper"].notna()]["method"].unique()
    if not len(known):
        return []

    def entry(row) -> Cell:
        mark = f" {MARK}" if row.selected_on_test else ""
        return Cell(number(row.paper) + ("" if pd.isna(row.difference) else f" ({row.difference:+.2f}){mark}"))

    compared = cells[cells["method"].isin(known)]
    header, rows = grid(summary, protocol, compared, entry)
    note = "The paper's accuracy in %, and in brackets how many points the result above exceeds it."
    if compared["selected_on_test"].any():
        note += f" {MARKED} of the result above."
    return [Table(f"{protocol}, {part}: the paper", header, rows, note)]


def significance(summary: Summary, protocol: str, part: str) -> list[Table]:
    def entry(p: float, corrected: float, n: int) -> Cell:
        return Cell(f"{MISSING} (n={n})" if pd.isna(p) else f"{format_p(p)}, Holm {format_p(corrected)} (n={n})")

    tests = select(summary.tests, protocol, part)

    def name(row, method: str | None) -> str:
        return f"{method} {MARK}" if method in row.selected_on_test else str(method)

    rows = [
        [
            Cell(name(row, row.against)),
            Cell(f"{row.difference:+.2f}"),
            entry(row.p_seeds, row.holm_seeds, row.seeds),
            entry(row.p_datasets, row.holm_datasets, row.datasets),
        ]
        for row in tests.itertuples()
    ]
    if not rows:
        return []
    counts = [int(tests[f"tests_{kind}"].max()) for kind in ("seeds", "datasets")]
    note = (
        "Mean difference in points, paired by dataset and seed; two-sided p, from three pairs on. Holm: corrected for "
        f"the number of tests in the column, {counts[0]} and {counts[1]}. "
        "Seeds: t-test of each seed's average over the datasets. Datasets: Wilcoxon's signed-rank test of their means."
    )
    if marked := dict.fromkeys(method for methods in tests["selected_on_test"] for method in methods):
        note += f" {MARKED} of {', '.join(marked)}; a comparison with methods without {MARK} is not fair."
    title = f"{protocol}, {part}: {name(tests.iloc[0], summary.focus)} against the others"
    return [Table(title, ["against", "difference", "p, seeds", "p, datasets"], rows, note)]


def times(summary: Summary) -> Table:
    rows = [
        [Cell(str(text)) for text in (row.protocol, row.part, row.method, row.device, f"{row.seconds:.1f}", row.runs)]
        for row in summary.times.itertuples()
    ]
    note = "Mean over runs of the time in the training loop: with data loading, without set-up and tests. "
    note += " ".join(f"Note: {warning}." for warning in summary.notes_on_times)
    return Table("training time", ["protocol", "part", "method", "device", "seconds a run", "runs"], rows, note.strip())


def markdown(tables: list[Table]) -> str:
    return "\n".join(f"## {table.title}\n\n{markdown_grid(table)}\n\n{table.note}\n" for table in tables)


def markdown_grid(table: Table) -> str:
    """The header and the rows."""
    marks = {0: "{}", 1: "**{}**", 2: "_{}_"}
    lines = [[name.replace("|", "\\|") for name in table.header], ["---"] * len(table.header)]
    lines += [[marks[cell.rank].format(cell.text.replace("|", "\\|")) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "√": r"$\surd$",
    "†": r"$\dagger$",
    "|": "$|$",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX; a hyphen before a number becomes a minus."""
    return re.sub(r"(^|\()-(?=\d)", r"\1$-$", "".join(LATEX.get(character, character) for character in text))


def latex(tables: list[Table]) -> str:
    """A complete document that needs only LaTeX's base packages; wide tables are scaled to the page."""
    marks = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    lines = [
        r"\documentclass[a4paper,10pt]{article}",
        r"\usepackage[landscape,margin=1.5cm]{geometry}",
        r"\usepackage{graphicx}",
        r"\newcommand{\fitted}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}",
        r"\setlength{\parindent}{0pt}",
        r"\begin{document}",
    ]
    for table in tables:
        rows = [" & ".join(marks[cell.rank].format(escape_latex(cell.text)) for cell in row) for row in table.rows]
        lines += [
            rf"\subsection*{{{escape_latex(table.title)}}}",
            rf"\fitted{{\begin{{tabular}}{{l{'c' * (len(table.header) - 1)}}}",
            rf"\hline {' & '.join(map(escape_latex, table.header))} \\ \hline",
            *(rf"{row} \\" for row in rows),
            r"\hline",
            rf"\end{{tabular}}}}\par\smallskip {escape_latex(table.note)}",
        ]
    return "\n".join([*lines, r"\end{document}", ""])
