"""The figures of a study as tables to read: Markdown, and a LaTeX document that compiles as it is."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from .tables import Summary

MISSING = "-"


class Cell(NamedTuple):
    """A cell's text, and its rank if it is to be marked: 1 the best of its column, 2 the second."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""


def layout(summary: Summary) -> list[Table]:
    """For each part of each protocol its accuracies, the paper's, and tests; then the times."""
    tables = []
    for protocol, part in summary.parts:
        cells = select(summary.cells, protocol, part)
        if cells["mean"].notna().any():
            tables += [accuracies(summary, protocol, part, cells), *beside_paper(summary, protocol, part, cells)]
            tables += tested(summary, protocol, part)
    return [*tables, times(summary)]


def select(frame: pd.DataFrame, protocol: str, part: str) -> pd.DataFrame:
    return frame[(frame["protocol"] == protocol) & (frame["part"] == part)] if len(frame) else frame


def number(value: float, form: str = ".2f") -> str:
    return MISSING if pd.isna(value) else format(value, form)


def p_value(p: float) -> str:
    return "<0.001" if p < 0.0005 else number(p, ".3f")


def grid(summary: Summary, protocol: str, cells: pd.DataFrame, entry) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of methods x datasets; `entry(row of cells)` is a Cell."""
    columns = [*summary.datasets(protocol), "average"]
    at = {(row.method, row.dataset): entry(row) for row in cells.itertuples()}
    methods = cells["method"].unique()
    return ["method", *columns], [[Cell(name), *(at[name, column] for column in columns)] for name in methods]


def accuracies(summary: Summary, protocol: str, part: str, cells: pd.DataFrame) -> Table:
    def entry(row) -> Cell:
        spread = "" if pd.isna(row.spread) else f" ± {row.spread:.2f}"
        count = f" (n={row.runs})" if 0 < row.runs < row.seeds else ""
        rank = row.rank if row.rank <= 2 and cells["method"].nunique() > 1 else 0  # NaN is no rank
        return Cell(f"{number(row.mean)}{spread}{count}", int(rank))

    seeds = len(summary.study.seeds)
    spread = "1.96 standard deviations / √n" if summary.ci95 else "population standard deviation"
    note = f"Accuracy in %: mean ± {spread} over {seeds} seed{'s' if seeds > 1 else ''}, of n where that is less; "
    note += "first and second best marked; - is missing."
    if part == "H":
        note += " H: harmonic mean of the mean base and the mean new accuracy; its spread is that of each seed's own."
    if protocol == "cross_dataset":
        note += f" Learned on {summary.study.source}, which the average leaves out."
    return Table(f"{protocol}, {part}", *grid(summary, protocol, cells, entry), note)


def beside_paper(summary: Summary, protocol: str, part: str, cells: pd.DataFrame) -> list[Table]:
    """The paper's figures and the difference to them in points, where it has any of these."""
    known = cells[cells["paper"].notna()]["method"].unique()
    if not len(known):
        return []

    def entry(row) -> Cell:
        return Cell(number(row.paper) + ("" if pd.isna(row.difference) else f" ({row.difference:+.2f})"))

    header, rows = grid(summary, protocol, cells[cells["method"].isin(known)], entry)
    note = "The paper's accuracy in %, and how many points the one above is over it."
    return [Table(f"{protocol}, {part}: the paper", header, rows, note)]


def tested(summary: Summary, protocol: str, part: str) -> list[Table]:
    rows = [
        [Cell(row.against), Cell(f"{row.difference:+.2f}")]
        + [Cell(f"{p_value(p)} (n={n})") for p, n in ((row.p_seeds, row.seeds), (row.p_datasets, row.datasets))]
        for row in select(summary.tests, protocol, part).itertuples()
    ]
    if not rows:
        return []
    note = (
        "Mean difference in points, paired by dataset and seed; two-sided p, not corrected for their number. "
        "Seeds: t-test of each seed's average over the datasets. Datasets: Wilcoxon's signed-rank test of their means."
    )
    title = f"{protocol}, {part}: {summary.focus} against the others"
    return [Table(title, ["against", "difference", "p, seeds", "p, datasets"], rows, note)]


def times(summary: Summary) -> Table:
    rows = [
        [Cell(str(text)) for text in (row.protocol, row.part, row.method, row.device, f"{row.seconds:.1f}", row.runs)]
        for row in summary.times.itertuples()
    ]
    note = "Mean over runs of the time in the training loop, data loading included, set-up and tests left out. "
    note += " ".join(f"Beware: {warning}." for warning in summary.warnings)
    return Table("training time", ["protocol", "part", "method", "device", "seconds a run", "runs"], rows, note.strip())


def markdown(tables: list[Table]) -> str:
    marks = {0: "{}", 1: "**{}**", 2: "_{}_"}
    parts = []
    for table in tables:
        lines = [[name.replace("|", "\\|") for name in table.header], ["---"] * len(table.header)]
        lines += [[marks[cell.rank].format(cell.text.replace("|", "\\|")) for cell in row] for row in table.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {table.title}\n\n{body}\n\n{table.note}\n")
    return "\n".join(parts)


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "√": r"$\surd$",
    "|": "$|$",
}


def escaped(text: str) -> str:
    """Text as LaTeX; a minus before a number is a minus."""
    return re.sub(r"(^|\()-(?=\d)", r"\1$-$", "".join(LATEX.get(character, character) for character in text))


def latex(tables: list[Table]) -> str:
    """A whole document of what LaTeX's base packages know; each table is as wide as it is, or as the page."""
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
        rows = [" & ".join(marks[cell.rank].format(escaped(cell.text)) for cell in row) for row in table.rows]
        lines += [
            rf"\subsection*{{{escaped(table.title)}}}",
            rf"\fitted{{\begin{{tabular}}{{l{'c' * (len(table.header) - 1)}}}",
            rf"\hline {' & '.join(map(escaped, table.header))} \\ \hline",
            *(rf"{row} \\" for row in rows),
            r"\hline",
            rf"\end{{tabular}}}}\par\smallskip {escaped(table.note)}",
        ]
    return "\n".join([*lines, r"\end{document}", ""])
