"""tools/prepare.py: published datasets, and folders of the user's own images."""

from pathlib import Path

from common.errors import UsageError
from common.names import printable

from . import command
from .own_images import add_images, check_folder


def main(argv: list[str] | None = None) -> None:
    args = command.parse_arguments(argv)
    folders = command.own_folders(args) if args.check or args.add else []
    if not folders:
        command.prepare_datasets(args)
    for folder in folders:
        if args.add:
            add_images(folder)
        else:
            check(folder, args.quick)


def check(folder: Path, quick: bool) -> None:
    """Print what a folder holds, and its faults. Raises UsageError if there are faults."""
    content = check_folder(folder, read=not quick)
    for fault in content.faults:
        print(f"  - {printable(fault)}")
    if content.faults:
        raise UsageError(f"{len(content.faults)} faults in {folder}", "see above")
    print("  nothing is wrong")
