"""tools/prepare.py: published datasets, and folders of the user's own images, for which it also
estimates times.
"""

from pathlib import Path

from common.errors import UsageError
from common.names import printable
from datasets.preparing import command
from datasets.preparing.own_images import add_images, check_folder


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
    """Print what a folder holds, its faults, and how long methods would take. Raises UsageError if
    there are faults.
    """
    content = check_folder(folder, read=not quick)
    for fault in content.faults:
        print(f"  - {printable(fault)}")
    if not quick and content.train:
        from .estimate import minutes

        times = minutes(content.train, content.test, content.names)
        parts = ", ".join(f"{name} {value:,.1f}" for name, value in times.items())
        print(f"  minutes with ViT-B/16 on this machine: {parts}")
    if content.faults:
        raise UsageError(f"{len(content.faults)} faults in {folder}", "see above")
    print("  nothing is wrong")
