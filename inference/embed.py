"""The command `python tools/embed.py`: the features of images, in files for other programs."""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import replacing
from common.start import Parser, at_least, path, required_packages

from .arguments import add_image_options, add_model_options, check_exists, load_options
from .options import LoadOptions
from .shards import Output, add_shard_option, end, facts_of, write_shards, write_table
from .tables import REQUIREMENTS, as_unicode
from .tars import Member, expanded

if TYPE_CHECKING:
    from dassl.utils.images import Content

    from .classifier import PromptedClassifier

LAYOUTS = "parquet", "clip-retrieval"


class Embedded(NamedTuple):
    """An image: its SHA-256, and its feature or why there is none."""

    path: str
    sha256: str
    feature: NDArray[np.float32] | None
    error: str


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Write the features of images: a Parquet file for 10,000 images, with path, "
        "sha256, feature and error. The same command again continues with the file that is "
        "missing.",
        usage="%(prog)s [options] [MODEL] IMAGE|FOLDER|LIST|TAR [...] --to FOLDER",
        epilog="Features are those of the model's image tower, of unit length unless the method "
        "says otherwise. Without a MODEL, --backbone gives those of CLIP. An image that cannot be "
        "read has an error instead of a feature, and the exit status is 1. A LIST is a .txt file "
        "with a path on each line, or .csv or .parquet with a column path; paths are absolute or "
        "relative to its folder. A TAR, or '{00000..00009}.tar', is of webdataset: it becomes one "
        "file, with keys for paths.",
    )
    add = parser.add_argument
    add("paths", type=path, nargs="+", metavar="PATH", help="perhaps a model, then the images")
    add("--to", type=path, required=True, metavar="FOLDER", help="new, or of an earlier call")
    text = "parquet, or img_emb/*.npy and metadata/*.parquet, as clip-retrieval reads them"
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0], help=f"{text} (default: parquet)")
    text = "numbers of a feature (default: float16)"
    add("--precision", choices=("float16", "float32"), default="float16", help=text)
    text = "images at a time (default: 100)"
    add("--batch-size", type=at_least(1), default=100, metavar="N", help=text)
    add_shard_option(parser)
    add_model_options(parser)
    add_image_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = load_options(args)
    check_exists(next(expanded(args.paths[0])), "model or image" if args.backbone else "model")
    with required_packages(REQUIREMENTS):
        import pyarrow  # noqa: F401 - before anything is computed
    with required_packages():
        from .models import kind_of, read_model
    model = args.paths[0] if kind_of(args.paths[0]) else None
    if model is None and not args.backbone:
        read_model(args.paths[0], options)  # which says why it is not a model
    images = args.paths[1:] if model else args.paths
    classifier = opened(model, options)
    facts = facts_of(classifier, model, options)
    facts |= {"precision": args.precision, "layout": args.layout}
    errors = write_shards(Features(args, facts, classifier), images, args.shard)
    end(args.to, errors)


def opened(model: Path | None, options: LoadOptions) -> "PromptedClassifier":
    """The model, or CLIP, whose features do not depend on class names."""
    from .models import load

    if model is None and not options.class_names:
        options = replace(options, class_names=["image"])
    classifier = load(model, options)
    classifier.require_one_view("a feature")
    return classifier


class Features(Output):
    """Files with features. In the layout of clip-retrieval, the row of an image that cannot be read
    has zeros.
    """

    name = "embed"
    content = "features"

    def __init__(
        self, args: argparse.Namespace, facts: dict[str, Any], classifier: "PromptedClassifier"
    ):
        super().__init__(args.to, facts)
        self.args = args
        self.classifier = classifier

    def files(self, number: int) -> list[Path]:
        if self.args.layout == LAYOUTS[0]:
            return super().files(number)
        features = self.folder / f"img_emb/img_emb_{number:05}.npy"
        return [features, self.folder / f"metadata/metadata_{number:05}.parquet"]

    def write(self, number: int, images: Sequence[Path | Member], facts: bytes) -> None:
        rows = []
        for part in embedded(images, self.classifier, self.args.batch_size):
            rows += part
            self.advance(len(part), sum(bool(row.error) for row in part))
        array = array_of(rows, self.classifier.width).astype(self.args.precision)
        *features, metadata = self.files(number)
        if features:
            with replacing(features[0]) as unfinished, open(unfinished, "xb") as file:
                np.save(file, array)
            write_parquet(metadata, rows, facts, "image_path")
        else:
            write_parquet(metadata, rows, facts, "path", array)


def array_of(rows: Sequence[Embedded], width: int) -> NDArray[np.float32]:
    """(rows, width): the features; zeros for an image without one."""
    features = np.zeros((len(rows), width), dtype=np.float32)
    for number, row in enumerate(rows):
        if row.feature is not None:
            features[number] = row.feature
    return features


def embedded(
    files: Sequence[Path | Member], classifier: "PromptedClassifier", batch_size: int
) -> Iterator[list[Embedded]]:
    """The features of one batch of images after another, and why others have none."""
    from .images import in_threads

    on_gpu = classifier.device.type == "cuda"
    return in_threads(partial(of_batch, classifier), files, batch_size, on_gpu)


def of_batch(classifier: "PromptedClassifier", files: Sequence[Path | Member]) -> list[Embedded]:
    from .batches import read_batch

    digests: dict[Path | Member, str] = {}
    faults, inputs = read_batch(files, [classifier], partial(read_known, digests))
    features = iter(classifier.features(inputs[0]).numpy() if inputs else ())
    rows = []
    for file, fault in zip(files, faults, strict=True):
        feature = None if fault else next(features)
        rows.append(Embedded(str(file), digests.get(file, ""), feature, fault))
    return rows


def read_known(digests: dict[Path | Member, str], file: Path | Member) -> "Content":
    """The content of a file, whose SHA-256 is added to the digests."""
    from .batches import content_of

    content = content_of(file)
    digests[file] = hashlib.sha256(content).hexdigest()
    return content


def write_parquet(
    file: Path,
    rows: Sequence[Embedded],
    facts: bytes,
    path_column: str,
    array: NDArray[Any] | None = None,
) -> None:
    """Write the rows, with the features (rows, width) if they are given."""
    import pyarrow

    columns: dict[str, Any] = {
        path_column: [as_unicode(row.path) for row in rows],
        "sha256": [row.sha256 for row in rows],
        "error": [row.error for row in rows],
    }
    if array is not None:
        is_bad = pyarrow.array([row.feature is None for row in rows])
        columns["feature"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(array.reshape(-1)), array.shape[1], mask=is_bad
        )
    write_table(file, pyarrow.table(columns), {Features.name: facts})
