"""The command `python tools/embed.py`: the features of images, in files for other programs."""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from common.files import checksum, replacing
from common.start import Parser, at_least, path, required_packages
from datasets.image_facts import SHAPE, Look, Taken

from .addresses import Image, source
from .arguments import add_image_options, add_model_options, check_exists, load_options
from .bank import FORM, is_bank
from .formats import as_unicode, parts
from .shard_files import REQUIREMENTS, ROWS, SHA256, Output, write_tables
from .sharding import add_shard_options, end, facts_of, write_shards
from .tars import expanded

if TYPE_CHECKING:
    from .classifier import PromptedClassifier

LAYOUTS = "parquet", "clip-retrieval"


@dataclass(frozen=True)
class EmbedOptions:
    """How features are computed and written; `look`: whether `fit` finds near-copies by them."""

    layout: str
    precision: str
    look: bool
    batch_size: int


class Embedded(NamedTuple):
    """An image: its SHA-256, and its feature or why there is none.

    Attributes:
        tower: (width,), what the frozen image tower computes before its projection; None if the
            method has an image tower of its own.
        size: width and height in pixels; None if there is no image.
        look: how it looks, for `fit`; None if that is not asked for.
    """

    path: str
    sha256: str
    error: str
    feature: NDArray[Any] | None
    tower: NDArray[Any] | None = None
    size: tuple[int, int] | None = None
    look: Look | None = None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Write the features of images: a Parquet file for 10,000 images, with path, "
        "sha256, width, height, feature and error. The same command again continues with the file "
        "that is missing.",
        usage="%(prog)s [options] [MODEL] IMAGE|FOLDER|LIST|TAR [...] --to FOLDER",
        epilog="Features are those of the model's image tower, of unit length unless the method "
        "says otherwise. Without a MODEL, --backbone gives those of CLIP. An image that cannot be "
        "read has an error instead of a feature, and the exit status is 1. A LIST is a .txt file "
        "with a path on each line, or .csv or .parquet with a column path; paths are absolute or "
        "relative to its folder. A TAR, or '{00000..00009}.tar', is of webdataset: it becomes one "
        "file, with keys for paths.",
    )
    add = parser.add_argument
    add("paths", type=source, nargs="+", metavar="PATH", help="perhaps a model, then the images")
    add("--to", type=path, required=True, metavar="FOLDER", help="new, or of an earlier call")
    text = "parquet, or img_emb/*.npy and metadata/*.parquet, as clip-retrieval reads them"
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0], help=f"{text} (default: parquet)")
    text = "numbers of a feature (default: float16)"
    add("--precision", choices=("float16", "float32"), default="float16", help=text)
    text = "also keep how images look, by which `fit` finds near-copies and bursts"
    add("--near-copies", dest="look", action="store_true", help=text)
    text = "images at a time (default: 100)"
    add("--batch-size", type=at_least(1), default=100, metavar="N", help=text)
    add_shard_options(parser)
    add_model_options(parser)
    add_image_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_exists(next(expanded(args.paths[0])), "model or image" if args.backbone else "model")
    with required_packages(REQUIREMENTS):
        import pyarrow  # noqa: F401 - before anything is computed
    output = output_of_args(args)
    errors = write_shards(output, args.paths[output.first_image :], args, argv)
    end(args.to, errors)


def output_of(words: Sequence[str]) -> "FeatureFiles":
    """The output of a command with these words."""
    return output_of_args(parse([*words]))


def output_of_args(args: argparse.Namespace) -> "FeatureFiles":
    options = load_options(args)
    with required_packages():
        from .load import kind_of, load, read_model
    first = args.paths[0]
    model = first if isinstance(first, Path) and kind_of(first) else None
    if model is None and not args.backbone:
        read_model(args.paths[0], options)  # which says why it is not a model
    if any(map(is_bank, args.paths)):
        raise UsageError("a bank has features already", "give images")
    if model is None and not options.class_names:  # CLIP's features do not depend on them
        options = replace(options, class_names=["image"])
    classifier = load(model, options)
    classifier.require_one_view("a feature")
    facts = facts_of(classifier, model, options)
    facts |= {"precision": args.precision, "layout": args.layout}
    if args.look:
        facts["look"] = True
    how = EmbedOptions(args.layout, args.precision, args.look, args.batch_size)
    output = FeatureFiles(args.to, how, facts, classifier)
    output.first_image = int(model is not None)
    return output


class FeatureFiles(Output):
    """Files with features. In the layout of clip-retrieval, the row of an image that cannot be read
    has zeros.
    """

    name = "embed"
    content = "features"

    def __init__(
        self,
        folder: Path,
        options: EmbedOptions,
        facts: dict[str, Any],
        classifier: "PromptedClassifier",
    ):
        from .head_only import HeadOnly

        self.behind: HeadOnly | None = None
        if options.layout == LAYOUTS[0]:
            with suppress(UsageError):  # an image tower of its own has no features for heads
                self.behind = HeadOnly(classifier)
                facts = facts | {"form": FORM}
        super().__init__(folder, facts)
        self.options = options
        self.classifier = classifier
        self.width = classifier.features(classifier.black()).shape[1]

    def files(self, number: int) -> list[Path]:
        if self.options.layout == LAYOUTS[0]:
            return super().files(number)
        features = self.folder / f"img_emb/img_emb_{number:05}.npy"
        return [features, self.folder / f"metadata/metadata_{number:05}.parquet"]

    def write(self, number: int, images: Sequence[Image], facts: bytes) -> None:
        *features, file = self.files(number)
        rows = self.rows(images)
        metadata = {self.name: facts}
        if features:
            kept = [*rows]
            rows = iter(kept)
            with replacing(features[0]) as unfinished, open(unfinished, "xb") as numbers:
                np.save(numbers, self.array([row.feature for row in kept], self.width))
            metadata[SHA256.decode()] = checksum(features[0]).encode()
        tables = map(self.table, parts(rows, ROWS))
        write_tables(file, self.table([]).schema, tables, metadata)

    def rows(self, images: Sequence[Image]) -> Iterator[Embedded]:
        from .images import in_threads

        on_gpu = self.classifier.on_gpu
        for part in in_threads(self.of_batch, images, self.options.batch_size, on_gpu):
            yield from part
            self.advance(len(part), sum(bool(row.error) for row in part))

    def table(self, rows: Sequence[Embedded]) -> Any:
        """The rows as a table of pyarrow, which has their features in the layout parquet."""
        import pyarrow

        if self.options.layout != LAYOUTS[0]:
            return pyarrow.table(table_of(rows, "image_path"))
        array = self.array([row.feature for row in rows], self.width)
        columns = table_of(rows, "path") | {"feature": fixed_lists(array, rows)}
        if self.behind:  # what heads read
            towers = self.array([row.tower for row in rows], self.behind.width)
            columns["tower"] = fixed_lists(towers, rows)
        if self.options.look:
            columns |= columns_of_looks(rows)
        return pyarrow.table(columns)

    def of_batch(self, files: Sequence[Image]) -> list[Embedded]:
        from .batches import Reader, read_batch

        reader = Reader(True, self.options.look)
        faults, inputs = read_batch(files, [self.classifier], reader.content, reader.image)
        of_good = self.computed(inputs[0]) if inputs else iter(())
        rows = []
        for file, fault in zip(files, faults, strict=True):
            feature, tower = (None, None) if fault else next(of_good)
            known: dict[str, Any] = {"size": reader.sizes.get(file), "look": reader.looks.get(file)}
            sha256 = reader.digests.get(file, "")
            rows.append(Embedded(str(file), sha256, fault, feature, tower, **known))
        return rows

    def computed(self, pixels: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
        """Of each image its feature, and what its tower computes before the projection."""
        if self.behind is None:
            features = self.classifier.features(pixels).numpy()
            return zip(features.astype(self.options.precision), repeat(None))
        before = self.behind.before(pixels)
        features = self.behind.features(before).numpy()
        towers = before.numpy().astype(self.options.precision)
        return zip(features.astype(self.options.precision), towers, strict=True)

    def array(self, features: Sequence[NDArray[Any] | None], width: int) -> NDArray[Any]:
        """(features, width); zeros for an image without one."""
        rows = np.zeros((len(features), width), dtype=self.options.precision)
        for number, feature in enumerate(features):
            if feature is not None:
                rows[number] = feature
        return rows


def table_of(rows: Sequence[Embedded], path_column: str) -> dict[str, Any]:
    """The columns of all layouts."""
    import pyarrow

    texts = {
        path_column: [row.path for row in rows],
        "sha256": [row.sha256 for row in rows],
        "error": [row.error for row in rows],
    }
    columns = {
        name: pyarrow.array(map(as_unicode, values), pyarrow.string())
        for name, values in texts.items()
    }
    for place, name in enumerate(("width", "height")):
        sides = [row.size and row.size[place] for row in rows]
        columns[name] = pyarrow.array(sides, pyarrow.int32())
    return columns


def fixed_lists(array: NDArray[Any], rows: Sequence[Embedded]) -> Any:
    """A column of lists of one size; rows with an error have none."""
    import pyarrow

    is_bad = pyarrow.array([bool(row.error) for row in rows], pyarrow.bool_())
    numbers = pyarrow.array(array.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(numbers, array.shape[1], mask=is_bad)


def columns_of_looks(rows: Sequence[Embedded]) -> dict[str, Any]:
    """How the images look; empty rows for those with an error."""
    import pyarrow

    nothing = Look("", np.zeros(SHAPE, dtype=np.int8), Taken())
    looks = [row.look if row.look and not row.error else nothing for row in rows]
    signatures = np.array([look.signature for look in looks], dtype=np.int8)
    pixels = pyarrow.array([look.pixels_sha256 for look in looks], pyarrow.string())
    flat = signatures.reshape(len(rows), math.prod(SHAPE))
    return {
        "pixels_sha256": pixels,
        "signature": fixed_lists(flat, rows),
        "camera": np.array([look.taken.camera for look in looks], dtype=np.uint64),
        "second": np.array([look.taken.second for look in looks], dtype=np.float64),
    }
