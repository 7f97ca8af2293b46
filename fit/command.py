"""The command `python tools/fit.py`: from a folder of images to the best classifier, with an honest
estimate.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from common.errors import UsageError
from common.files import checksum
from common.names import as_clip_reads, printable
from common.start import Parser, required_packages
from datasets.base import missing_files

from .options import FitRequest, add_options
from .read_images import Photo, check_named, find
from .record import check_same_images, checksums, earlier_record, record_of

INSIDE = re.compile("(?<=[a-z])(?=[A-Z])")  # between the words of a CamelCase name
DESCRIPTION = """Find the best classifier for a folder of images: zero-shot CLIP, every head of this
project, ensembles of them and, while the minutes last, prompts and CLIP-LoRA are compared on images
that they have not learned from."""
EPILOG = """
IMAGES has one folder for each class, or train/, val/ and test/ with such folders, or metadata.csv
or metadata.jsonl with file_name and label, as Hugging Face has it; or is a CSV file with the
columns path and label (and split and group); or is a bank, a folder of tools/embed.py: then heads
are tried, and no image is opened. Images of val/ are learned from, too: folds take their place. The
folder of --to is a MODEL for tools/predict.py, serve.py and export.py;
report.html in it explains the result, fit.json has every number. The same command again resumes,
and more images cost only what is new.
"""


def parse(argv: list[str] | None) -> FitRequest:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    parser.command = "fit"
    add_options(parser)
    options = vars(parser.parse_args(argv))
    if options["images"] is None:
        parser.error("the argument IMAGES is missing: write it before options with several values")
    values = {one.name: options[one.name] for one in fields(FitRequest)}
    for name in ("backbones", "methods"):
        values[name] = tuple(values[name])
    return FitRequest(**values)


def main(argv: list[str] | None = None) -> None:
    request = parse(argv)
    if request.groups == "none" and request.group_by:
        raise UsageError(
            "--groups none and --group-by contradict each other", "leave out one of them"
        )
    photos = find(request.images, request.test, request.group_by, request.labels)
    if request.groups != "none":
        check_named(photos, request.images)
    earlier = earlier_record(request.to)
    classes = sorted({photo.label for photo in photos})
    announce(request, photos, classes)
    if request.methods:
        with required_packages():
            from .fit import check_methods  # imports torch, which takes seconds
        check_methods(request.methods)
    photos = with_checksums(photos)
    if not request.replace:
        check_same_images(earlier, photos, request)
    record = record_of(request, photos, earlier)
    if record.get("finished") is True:
        page = request.to / "report.html"
        if record.get("model") == checksums(request.to) and page.is_file():
            print(f"Already done for these images: see {page} (delete {request.to} to fit again)")
            return
        files = f"The model or {page.name} in {request.to}"
        print(f"{files} is gone or was changed: it is fitted again")
    with required_packages():
        from .fit import fit  # imports torch, which takes seconds
    for line in fit(request, photos, record).summary():
        print(printable(line))


def announce(request: FitRequest, photos: Sequence[Photo], classes: Sequence[str]) -> None:
    """Say what a fit is about to read."""
    tests = sum(photo.part == "test" for photo in photos)
    besides = f", and {tests:,} test images" if tests else ""
    count = f"{len(photos) - tests:,} images in {len(classes)} classes{besides}"
    print(f"{count}: reading their checksums")
    if request.max_error:
        print(f"--max-error: at most {request.max_error:g}% of the answers may be wrong")
    if not request.sentences:
        note_joined_names(classes)


def note_joined_names(classes: Sequence[str]) -> None:
    """Print how CLIP reads names in CamelCase."""
    joined = [name for name in classes if INSIDE.search(name)]
    if joined:
        reads = ", ".join(repr(as_clip_reads(name)) for name in joined[:3])
        better = INSIDE.sub(" ", joined[0])
        print(printable(f"CLIP reads {reads}: names like {better!r} may give better results"))


def with_checksums(photos: Sequence[Photo]) -> list[Photo]:
    """The photos with the SHA-256 of their files; empty for one that is missing."""
    missing = set(missing_files(photo.path for photo in photos if not photo.bank))
    return [
        photo
        if photo.bank or photo.path in missing
        else replace(photo, sha256=checksum(Path(photo.path)))
        for photo in photos
    ]
