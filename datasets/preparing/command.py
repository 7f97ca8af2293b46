"""Download datasets and arrange them in the folders that this project and CoOp expect.

    python tools/prepare.py eurosat dtd --root data  # download, verify, unpack, arrange
    python tools/prepare.py --list --root data  # every dataset: size, terms, whether it is ready
    python tools/prepare.py --check eurosat --root data  # compare with its split; read each image
    python tools/prepare.py --add birds  # add new images of your own to their saved split
    python tools/prepare.py fewshot eurosat --root data --seed 1 --shots 16  # of a run
    python tools/prepare.py sentences eurosat --root data --file FILE  # check them
    python tools/prepare.py backbone NAME  # a backbone with its tokeniser: see backbone --help

After an interruption, the same command resumes. If a file cannot be downloaded from your network,
put it into the dataset's folder under the same name, or into a folder given by --from.
"""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from multiprocessing.pool import ThreadPool
from pathlib import Path

from dassl.utils import read_image
from tqdm import tqdm

from common.errors import UsageError, suggestion
from common.files import checksum
from common.names import plain, printable
from common.start import Parser, at_least, path

from .. import image_facts
from ..base import FewShotDataset, missing_files, same_names
from ..image_folder import add_images
from .arrange import Preparation
from .sources import DatasetSource, downloadable, find, image_paths, images_by_split, names

SHOWN = 10  # images in the line of a fault
TWICE = "in several parts, by their pixels"  # a fault of images


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
    )
    add = parser.add_argument
    text = "names in configs/datasets, or all; or: fewshot DATASET, sentences DATASET"
    add("names", nargs="*", metavar="DATASET", help=text)
    add("--root", type=path, default=Path("data"), help="folder of the datasets (default: data)")
    add("--list", action="store_true", help="list the datasets and whether they are ready")
    add("--check", action="store_true", help="report missing and wrong files; download nothing")
    text = "of folders of your own images: add new images to their saved splits"
    add("--add", action="store_true", help=text)
    add("--quick", action="store_true", help="with --check: do not read the images")
    text = "folder with files that you downloaded manually"
    add("--from", type=path, dest="from_dir", metavar="FOLDER", help=text)
    text = (
        "download every file from URL/DATASET/FILE (default: the environment variable "
        "PREPARE_MIRROR)"
    )
    mirror = os.environ.get("PREPARE_MIRROR", "")
    add("--mirror", default=mirror, metavar="URL", help=text)
    text = "for fewshot: the seed of the run (default: 1)"
    add("--seed", type=at_least(0), default=1, help=text)
    text = "for fewshot: images per class (default: 16; of --file: all)"
    add("--shots", type=at_least(1), help=text)
    parts = ("all", "base", "new")
    add("--classes", choices=parts, default="all", help="for fewshot: which classes")
    text = "for fewshot: CoOp's .pkl with a choice of images; for sentences: a JSON file"
    add("--file", type=path, help=text)
    return checked(parser.parse_intermixed_args(argv))


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the default of --shots; UsageError for a folder that is not there."""
    args.shots = args.shots or (-1 if args.file else 16)
    if args.from_dir and not args.from_dir.is_dir():
        remedy = "--from takes the folder with the downloaded files"
        raise UsageError(f"no folder {args.from_dir}", remedy)
    return args


def prepare(sources: list[DatasetSource], args: argparse.Namespace) -> None:
    """Prepare datasets one after the other; if one fails, continue with the others."""
    failed = 0
    for source in sources:
        preparation = Preparation(source, args.root, args.from_dir, args.mirror)
        try:
            if source.files and preparation.is_ready():
                print(f"{source.name}: ready")
            else:
                if source.files:
                    preparation.run()
                print(f"{source.name}: ready: {describe(source.read_quietly(args.root))}")
        except (UsageError, OSError) as error:
            if isinstance(error, OSError):
                remedy = "fix this or choose another --root, then run the same command again"
                error = UsageError(error.strerror or str(error), remedy, error.filename)
            if len(sources) == 1:
                raise error from None
            failed += 1
            print(printable(f"{source.name}: {error}"))
    if failed:
        raise UsageError(f"could not prepare {failed} of {len(sources)} datasets", "see above")


def show_list(sources: list[DatasetSource], args: argparse.Namespace) -> None:
    """Print a line per dataset."""
    for source in sources:
        preparation = Preparation(source, args.root)
        dataset = source.dataset
        terms = "nothing to download"
        state = (
            "ready"
            if preparation.is_ready()
            else "incomplete"
            if preparation.folder.is_dir()
            else "not there"
        )
        if source.files:
            how = "manually" if dataset.manual_steps else "downloaded"
            size = (
                sum(file.size for file in source.files if file.link or dataset.manual_steps) / 1e9
            )
            terms = f"{size:6.1f} GB, {how}; {dataset.licence} ({dataset.page})"
        print(f"{source.name:16} {state:10} {terms}")


def show_fewshot(sources: list[DatasetSource], args: argparse.Namespace) -> None:
    """Print the images that a run trains and validates on, in its order, relative to the folder of
    images.
    """
    if len(sources) != 1:
        remedy = "python tools/prepare.py fewshot DATASET --seed 1 --shots 16"
        raise UsageError("fewshot needs one dataset", remedy)
    (source,) = sources
    if getattr(source.dataset, "test_only", False):
        raise UsageError(
            f"{source.name} has test images only", "choose a dataset with training images"
        )
    options = ["DATASET.NUM_SHOTS", str(args.shots), "DATASET.SUBSAMPLE_CLASSES", args.classes]
    options += ["DATASET.FEWSHOT_FILE", str(args.file)] if args.file else []
    with redirect_stdout(sys.stderr):
        dataset = source.read(args.root, *options, seed=args.seed)
    for part, items in {"train": dataset.train_x, "val": dataset.val or []}.items():
        for item in items:
            print(part, printable(os.path.relpath(item.impath, dataset.images)))


def check_sentences(sources: list[DatasetSource], args: argparse.Namespace) -> None:
    """Print what a file has for the classes of a dataset; an error if it lacks some or has
    others.
    """
    if len(sources) != 1 or not args.file:
        fault = "sentences needs one dataset and a file"
        raise UsageError(fault, "python tools/prepare.py sentences DATASET --file FILE")
    dataset = sources[0].read(args.root, "DATASET.SENTENCES", str(args.file))
    print(f"{checksum(args.file)}  {args.file}")
    written = {plain(name): texts for name, texts in dataset.sentences.items()}
    classes = list(map(plain, dataset.classnames))
    missing = [name for name in classes if not written.get(name)]
    unknown = [name for name in written if name not in classes]
    faults = {
        "have more than 77 tokens, of which CLIP reads the first ones": long_sentences(written),
        "classes without sentences have the template": missing,
        "are not classes of the dataset": unknown,
    }
    for fault, texts in faults.items():
        if texts:
            print(f"{len(texts):,} {fault}: {listed(texts)}")
    if missing or unknown:
        fault = f"{args.file} lacks {len(missing):,} classes, and has {len(unknown):,} unknown ones"
        remedy = "name the classes as the dataset does" + suggestion("".join(unknown[:1]), missing)
        raise UsageError(fault, remedy, args.file)


def long_sentences(written: Mapping[str, Sequence[str]]) -> list[str]:
    """The beginnings of sentences that CLIP does not read to their end, by class name."""
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds

    encode = SimpleTokenizer().encode
    full = [text.replace("{}", name) for name, texts in written.items() for text in texts]
    return [text[:60] for text in full if len(encode(text)) > 75]


def check_datasets(sources: list[DatasetSource], args: argparse.Namespace) -> None:
    """Print the state of each dataset; an error at the end if something is missing or wrong."""
    failed = 0
    for source in sources:
        print(f"{source.name} in {source.folder(args.root)}")
        remedy = inspect(source, args.root, not args.quick)
        if remedy:
            print(f"  -> {remedy}")
            failed += 1
    if failed:
        raise UsageError(f"incomplete or wrong: {failed} of {len(sources)} datasets", "see above")


def inspect(source: DatasetSource, root: Path, read: bool = True) -> str:
    """Compare a dataset with its split and its published counts, and print what was found.

    Args:
        source: the dataset.
        root: folder of the datasets.
        read: decode every image, instead of only checking that it exists.

    Returns:
        what to do about it; empty if nothing is wrong.
    """
    try:
        dataset = source.read_quietly(root)
    except UsageError as error:
        print(printable(f"  {UsageError(error.fault, where=error.where)}"))
        if source.files:
            return Preparation(source, root).with_command(error).remedy
        return error.remedy
    wrong = wrong_counts(dataset)
    print(f"  {describe(dataset)}{', as published' if dataset.counts and not wrong else ''}")
    for line in wrong:
        print(f"  {line}")
    twins = same_names(dataset.classnames)
    if twins:
        print(f"  {twins}")
    faults = faults_of_images(dataset, read)
    for fault, images in faults.items():
        if images:
            print(f"  images {fault} ({len(images):,}): {listed(images)}")
    gaps = label_gaps(dataset)
    if gaps:
        print(f"  no class has the label {listed(list(map(str, gaps)))}")
    remedy = remedy_of(source, root, dataset, faults, bool(wrong), bool(gaps))
    if not remedy:
        print("  nothing is wrong" if read else "  nothing is missing (--quick: no image was read)")
    return remedy


def wrong_counts(dataset: FewShotDataset) -> list[str]:
    """The counts of a dataset that differ from the published ones."""
    if not dataset.counts:
        return []
    published = (*dataset.counts, dataset.n_classes)
    return [
        f"{number:,} {unit} instead of {expected:,}"
        for (unit, number), expected in zip(counts(dataset).items(), published, strict=True)
        if number != expected
    ]


def faults_of_images(dataset: FewShotDataset, read: bool) -> dict[str, list[str]]:
    """The images with each fault. Without `read`, none of them is decoded."""
    paths = image_paths(dataset)
    missing = missing_files(paths)
    present = sorted(set(paths).difference(missing)) if read else []
    unreadable = []
    digests = {}
    found = digests_of(present, dataset.cfg.INPUT.MAX_PIXELS)
    for image, (digest, reason) in zip(present, found, strict=True):
        if reason:
            unreadable.append(f"{image} ({reason})")
        else:
            digests[image] = digest
    twice = duplicates_across_splits(dataset, digests)
    return {"missing": missing, "unreadable": unreadable, TWICE: twice}


def digests_of(paths: Sequence[str], max_pixels: int) -> Iterator[tuple[str, str]]:
    """For each image the SHA-256 of its pixels, and why it cannot be read if so."""

    def read(path: str) -> tuple[str, str]:
        try:
            return image_facts.pixels_sha256(read_image(path, max_pixels)), ""
        except OSError as error:
            return "", str(error).replace(repr(path), "it").replace("the image it", "it")

    with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
        found = pool.imap(read, paths, chunksize=4)
        yield from tqdm(found, total=len(paths), desc="reading", disable=None)


def listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return f"{', '.join(printable(item) for item in items[:SHOWN])}{more}"


def remedy_of(
    source: DatasetSource,
    root: Path,
    dataset: FewShotDataset,
    faults: dict,
    wrong: bool,
    gaps: bool,
) -> str:
    """What to do about faults of images, a wrong number of them, or gaps between labels."""
    if not (faults["missing"] or faults["unreadable"] or wrong):
        if dataset.counts:  # a published split is used as it is
            return ""
        if faults[TWICE]:
            why = "the accuracy of a test would be too high"
            return f"remove these images from one part of the split: {why}"
        return f"number the classes in {dataset.split_file} without gaps" if gaps else ""
    if not source.files:
        return f"replace these images, or {dataset.remedy}"
    if faults["unreadable"]:
        return f"move {dataset.images} elsewhere, then: {source.command(root)}"
    if wrong:
        names = [file.name for file in source.files]
        split = dataset.split_file if dataset.split_file in names else ""
        return f"move {source.folder(root) / split} elsewhere, then: {source.command(root)}"
    return source.command(root)


def counts(dataset: FewShotDataset) -> dict[str, int]:
    """The number of images of each part, and of classes."""
    images = {f"images for {part}": len(items) for part, items in images_by_split(dataset).items()}
    return images | {"classes": dataset.num_classes}


def describe(dataset: FewShotDataset) -> str:
    return ", ".join(f"{number:,} {unit}" for unit, number in counts(dataset).items() if number)


def duplicates_across_splits(dataset: FewShotDataset, digests: dict[str, str]) -> list[str]:
    """The images of a part whose pixels those of another part have, too: `path = path`."""
    parts: dict[str, dict[str, str]] = {}
    for part, items in images_by_split(dataset).items():
        for item in items:
            if item.impath in digests:
                parts.setdefault(digests[item.impath], {})[part] = item.impath
    return [" = ".join(of.values()) for of in parts.values() if len(of) > 1]


def label_gaps(dataset: FewShotDataset) -> list[int]:
    """The numbers below the largest label of a split file that no image has as its label."""
    with redirect_stdout(io.StringIO()):
        labels = (
            {item.label for part in dataset.read_split() for item in part}
            if dataset.split_file
            else set()
        )
    return sorted({*range(max(labels, default=0))} - labels)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    own = [name for name in args.names if os.path.isdir(name)]
    if args.add:
        if not own or len(own) < len(args.names):
            raise UsageError("--add takes folders of your own images", "give their paths")
        for folder in own:
            add_images(Path(folder))
    elif args.check and {*own}.difference(names()):
        fault = f"{own[0]} is a folder of your own images, which --check does not read"
        raise UsageError(fault, f"python tools/fit.py {shlex.quote(own[0])} names its faults")
    else:
        prepare_datasets(args)


def prepare_datasets(args: argparse.Namespace) -> None:
    """Do what the arguments ask of the datasets of CoOp's layout."""
    commands = {"fewshot": show_fewshot, "sentences": check_sentences}
    choose = commands.get((args.names or [""])[0])
    names = args.names[1:] if choose else args.names
    every = "all" in names or (not args.names and (args.list or args.check))
    sources = [find(name) for name in dict.fromkeys(downloadable() if every else names)]
    if choose:
        choose(sources, args)
    elif not sources:
        raise UsageError("no dataset is given", "python tools/prepare.py --list shows their names")
    else:
        (show_list if args.list else check_datasets if args.check else prepare)(sources, args)
