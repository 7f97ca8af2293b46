"""The answers of a prediction as a table for people, CSV, JSON, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common.errors import UsageError
from common.files import replacing
from common.names import csv_cell, padded, printable, width
from common.start import required_packages

from .shard_files import REQUIREMENTS, remove_unfinished, write_tables

if TYPE_CHECKING:
    from .batches import AnswerRow
    from .load import Model

FORMS = "csv", "json", "jsonl", "parquet"
SHOWN = 5  # classes of a set in the table
PART = 10_000  # rows of Parquet in memory


@dataclass(frozen=True)
class Layout:
    """A row of an image and a model.

    Attributes:
        top: number of most probable classes.
        unknown, sets, together: whether there are such columns.
        errors: whether there are columns for the error and the size of an image.
    """

    top: int
    unknown: bool
    sets: bool
    errors: bool = False
    together: bool = False

    @cached_property
    def ranks(self) -> list[str]:
        """The endings of the columns of each of the most probable classes."""
        return ["", *(f"_{rank}" for rank in range(2, self.top + 1))]

    @cached_property
    def columns(self) -> list[str]:
        """Of CSV and Parquet, which have one row for each image and model."""
        pairs = [f"{name}{rank}" for rank in self.ranks for name in ("answer", "probability")]
        columns = ["path", "model", *pairs]
        if self.unknown:
            columns.append("unknown")
        if self.sets:
            columns.append("set")
        if self.errors:
            columns += "error", "width", "height"
        if self.together:
            columns.append("together")
        return columns

    def values(self, row: "AnswerRow") -> dict[str, Any]:
        """The values of these columns; None where a row has none."""
        known = {"error": "", **row, "path": row["image"]}
        for rank, pair in enumerate(row.get("top", ())):
            known[f"answer{self.ranks[rank]}"] = pair["class"]
            known[f"probability{self.ranks[rank]}"] = pair["probability"]
        if row.get("set") is not None:
            known["set"] = [pair["class"] for pair in row["set"]]
        if row.get("size"):
            known["width"], known["height"] = row["size"]
        return {name: known.get(name) for name in self.columns}


def form_of(file: Path | None, form: str) -> str:
    """The form of the file to write, or of what is printed: one of FORMS, or empty for a table.

    Raises:
        UsageError: nothing says the form of the file, its folder is missing, or Parquet would be
            printed.
    """
    if file is None:
        if form == "parquet":
            raise UsageError("Parquet cannot be printed", "name a file: --to FILE.parquet")
        return form
    if file.is_dir():
        raise UsageError(f"{file} is a folder", f"name a file, or write it as {file}/", file)
    if not file.parent.is_dir():
        fault = f"{file} is in a folder that does not exist"
        raise UsageError(fault, "give --to the name of a file in a folder", file)
    form = form or file.suffix.lower().removeprefix(".")
    if form not in FORMS:
        endings = ", ".join(f".{one}" for one in FORMS)
        raise UsageError(f"{file} does not end in {endings}", "rename it, or add --format", file)
    if form == "parquet":
        with required_packages(REQUIREMENTS):
            import pyarrow  # noqa: F401 - before anything is computed
    return form


def write(file: Path, form: str, rows: Iterable["AnswerRow"], layout: Layout) -> None:
    """Write the rows completely or not at all."""
    remove_unfinished(file)
    if form == "parquet":
        tables = (arrow_table(part, layout) for part in parts(rows, PART))
        write_tables(file, arrow_table([], layout).schema, tables, {})
        return
    with (
        replacing(file) as partial,
        open(partial, "x", encoding="utf-8", errors="backslashreplace") as out,
    ):
        PRINTED[form](out, rows, layout)


def as_json(out: TextIO, rows: Iterable["AnswerRow"], _: Layout) -> None:
    before = "[\n "
    for row in rows:
        out.write(before + json_object(row))
        before = ",\n "
    out.write("\n]\n")


def as_json_lines(out: TextIO, rows: Iterable["AnswerRow"], _: Layout) -> None:
    for row in rows:
        out.write(json_object(row) + "\n")


def json_object(row: "AnswerRow") -> str:
    shown = {key: value for key, value in row.items() if key != "size" and value is not None}
    return json.dumps(shown)


def as_csv(out: TextIO, rows: Iterable["AnswerRow"], layout: Layout) -> None:
    """A set is a JSON list."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(layout.columns)
    for row in rows:
        values = layout.values(row)
        if layout.sets:
            values["set"] = json.dumps(values["set"])
        writer.writerow(map(csv_cell, values.values()))


PRINTED = {"csv": as_csv, "json": as_json, "jsonl": as_json_lines}


def arrow_table(rows: Iterable["AnswerRow"], layout: Layout) -> Any:
    """The rows as a table of pyarrow."""
    import pyarrow

    types = {"probability": pyarrow.float32(), "unknown": pyarrow.bool_()}
    types |= dict.fromkeys(("together", "width", "height"), pyarrow.int32())
    types["set"] = pyarrow.list_(pyarrow.string())
    names = layout.columns
    fields = [(name, types.get(name.partition("_")[0], pyarrow.string())) for name in names]
    values = [
        {name: as_unicode(value) for name, value in layout.values(row).items()} for row in rows
    ]
    return pyarrow.Table.from_pylist(values, pyarrow.schema(fields))


def as_unicode(value: Any) -> Any:
    """A text, perhaps with file names, whose bytes that are not UTF-8 are escaped; else the
    value.
    """
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def parts(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """At most `size` rows at a time."""
    remaining = iter(rows)
    while part := list(islice(remaining, size)):
        yield part


def as_table(
    out: TextIO,
    rows: Iterable["AnswerRow"],
    files: Sequence[Path],
    models: Sequence["Model"],
    class_names: Sequence[str] | None,
) -> None:
    """For people; the widths of the columns are those of all files, models and classes.

    `class_names` are those that the user gives, if any.
    """
    image_width = max(map(width, map(printable, files)))
    model_width = max(width(printable(model.name)) for model in models)
    class_width = max(
        max(map(width, class_names or model.classifier.class_names)) for model in models
    )
    for row in rows:
        cells = [padded(printable(row["image"]), image_width)]
        cells.append(padded(printable(row["model"]), model_width))
        if row["unknown"] is not None:
            cells.append("unknown" if row["unknown"] else " " * len("unknown"))
        if row["set"] is None:
            cells.append("   ".join(bar(pair, class_width) for pair in row["top"]))
        else:
            cells.append(set_text(row["set"]))
        out.write("  ".join(cells) + "\n")


def bar(pair: Mapping[str, Any], class_width: int) -> str:
    """A class and its probability."""
    return f"{padded(pair['class'], class_width)} {100 * pair['probability']:5.1f} %"


def set_text(members: Sequence[Mapping[str, Any]]) -> str:
    """The names of a set, of which a table shows the first."""
    text = ", ".join(pair["class"] for pair in members[:SHOWN])
    if len(members) > SHOWN:
        text += f", and {len(members) - SHOWN} more"
    return f"{{{text}}}"
