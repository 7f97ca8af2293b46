"""From published files to CoOp's folder layout: fetch, verify and unpack into a temporary folder,
rename.
"""

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from common.errors import UsageError

from ..base import DatasetError, missing_files
from ..files import File
from .fetch import difference, fetch, unpack_file
from .sources import DatasetSource, image_paths

WORK = ".preparing"  # in the dataset's folder: downloads and unfinished files
LOCK = ".preparing.lock"  # of the process that prepares the dataset
RESERVE = 1 << 30  # bytes of the disk to leave free


class Preparation:
    """Gets the missing files of a dataset under a root. Existing files are neither changed nor
    deleted.

    `from_dir` is a folder with downloaded files, `mirror` the address of one with every file as
    <dataset>/<name>.
    """

    def __init__(
        self, source: DatasetSource, root: Path, from_dir: Path | None = None, mirror: str = ""
    ):
        self.source = source
        self.root = root
        self.command = source.command(root)
        self.folder = source.folder(root)
        self.work = self.folder / WORK
        given = [from_dir / source.name, from_dir] if from_dir else []
        self.places = [self.folder, *given, self.work]  # of local files
        self.mirror = f"{mirror.rstrip('/')}/{source.name}" if mirror else ""

    def problem(self) -> tuple[DatasetError | None, list[str]]:
        """Why a run cannot use the dataset, or None, and the images of its split that do not
        exist.
        """
        try:
            dataset = self.source.read_quietly(self.root)
        except DatasetError as error:
            return error, []
        missing = missing_files(image_paths(dataset))
        if not missing:
            return None, []
        return DatasetError(
            f"images missing: {len(missing):,}, the first {missing[0]}", where=self.folder
        ), missing

    def is_ready(self) -> bool:
        return not self.work.exists() and not self.missing_texts() and self.problem()[0] is None

    def with_command(self, problem: UsageError) -> UsageError:
        """The same error, whose remedy is the command to run, and any step before it."""
        before = (
            f"move {problem.where} elsewhere, then: "
            if os.path.lexists(problem.where or "")
            else ""
        )
        return UsageError(problem.fault, before + self.command, problem.where)

    def run(self) -> None:
        """Get, verify, unpack and rename the missing files. Raises UsageError if one is not
        available or not valid.
        """
        self.refuse_links()
        self.check_space(self.missing_archives())
        created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / LOCK
        if lock.exists():
            print(f"{lock} exists: waiting while another process prepares this dataset")
        try:
            with FileLock(lock), ExitStack() as stack:
                # While it is held: a process that waits makes another one
                stack.callback(lock.unlink, missing_ok=True)
                self.work.mkdir(exist_ok=True)
                stack.callback(shutil.rmtree, self.work / "unpacked", ignore_errors=True)
                self.install_missing()
                shutil.rmtree(self.work)
        finally:  # downloads stay, to be resumed
            with suppress(OSError):  # not empty
                for path in (self.work, *created):
                    path.rmdir()
        problem, _ = self.problem()
        if problem:
            raise self.with_command(problem)

    def refuse_links(self) -> None:
        """Raise UsageError for links and pipes, which this command does not make."""
        for path in (self.work, *self.work.rglob("*")):
            if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
                fault = UsageError(f"{path} is a link or not a regular file", where=path)
                raise self.with_command(fault)

    def install_missing(self) -> None:
        """Put missing files into their places. Raises UsageError if an archive lacks an image; the
        archives stay.
        """
        for file in self.missing_texts():
            self.install(file)
        for file in self.missing_archives():
            self.unpack(file)
        _, missing = self.problem()
        if missing:
            fault = f"{len(missing)} images of the split are not in the archives"
            split = self.folder / self.source.dataset.split_file
            remedy = f"move {split} or {self.work} elsewhere, then: {self.command}"
            raise UsageError(f"{fault}, the first {missing[0]}", remedy, self.folder)

    def missing_texts(self) -> list[File]:
        """Split files and lists that are missing."""
        return [
            file
            for file in self.source.files
            if file.extract is None and not (self.folder / file.name).is_file()
        ]

    def missing_archives(self) -> list[File]:
        """Archives with the missing images. Local archives are preferred to those that can be
        downloaded. Raises UsageError if an archive must be downloaded manually, or something is in
        the way.
        """
        problem, missing = self.problem()
        if problem is None:
            return []
        archives = [file for file in self.source.files if file.extract is not None]
        absent = set()
        for target in {target for file in archives for target in file.targets}:
            path = self.folder / target
            if os.path.lexists(path) and not path.is_dir():
                raise self.with_command(UsageError("is not a folder", where=path))
            if missing or target == "." or not path.exists():
                absent.add(target)
        needed = set()
        for file in sorted(archives, key=lambda file: (not self.local(file), not file.link)):
            if absent.intersection(file.targets):
                needed |= {file.name, file.labels_from}
                absent.difference_update(file.targets)
        # A damaged split
        if Path(problem.where or "").is_file() or not (needed or self.missing_texts()):
            raise self.with_command(problem)
        archives = [file for file in archives if file.name in needed]
        self.check_available(archives)
        return archives

    def check_available(self, archives: list[File]) -> None:
        """Raise UsageError if an archive is not there and cannot be downloaded."""
        manual = [file for file in archives if not (self.local(file) or file.link or self.mirror)]
        if manual:
            names = ", ".join(file.name for file in manual)
            size = sum(file.size for file in manual) / 1e9
            put = f"put {names} ({size:.1f} GB) into {self.folder}, then: {self.command}"
            fault = f"{self.source.name} needs files that must be downloaded manually"
            raise UsageError(
                fault, "; ".join(filter(None, (self.source.dataset.manual_steps, put)))
            )

    def local(self, file: File) -> Path | None:
        """Local path of a file (given or already downloaded), or None; UsageError if it is not a
        regular file.
        """
        for path in (place / file.name for place in self.places):
            if path.is_file():
                return path
            if os.path.lexists(path):
                raise self.with_command(UsageError(f"{path} is not a regular file", where=path))
        return None

    def check_space(self, archives: list[File]) -> None:
        """Check that the disk has enough bytes for the images, and for the largest archive while it
        is unpacked.
        """
        downloads = [file.size for file in archives if not self.local(file)]
        need = sum(file.size for file in archives) + max([0, *downloads])
        place = next(
            path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(place).free
        if need and need + RESERVE > free:
            fault = f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free"
            raise UsageError(fault, "free some space, or choose another --root")

    def get(self, file: File) -> Path:
        """A verified file, local or downloaded."""
        path = self.local(file)
        if path is None:
            remedy = f"put {file.name} into {self.folder} manually, then: {self.command}"
            return fetch(file, self.work, remedy, self.mirror)
        # Else it was verified after its download
        fault = difference(path, file) if path.parent != self.work else ""
        if fault:
            raise UsageError(
                f"{path} is not the published file ({fault})",
                "download it again, or delete it",
                path,
            )
        return path

    def install(self, file: File) -> None:
        """Put a split or a list of names into the dataset's folder, after checking that a run can
        read the split.
        """
        root = self.work / "unpacked"
        copy = self.source.folder(root) / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.get(file), copy)
        (self.work / file.name).unlink(missing_ok=True)
        try:
            if file.name == self.source.dataset.split_file:
                self.source.read_quietly(root)
        except DatasetError:
            remedy = f"download it from {file.link} and put it into {self.folder}"
            raise UsageError(
                f"the downloaded {file.name} is incomplete or another file", remedy
            ) from None
        copy.replace(self.folder / file.name)

    def unpack(self, file: File) -> None:
        """Unpack an archive, and move its folders to their places by renaming; files that exist
        stay.
        """
        path = self.get(file)
        unpacked = self.work / "unpacked"
        try:
            unpack_file(path, unpacked, file.nested_archives)
            for kit in self.source.files:
                if kit.name == file.labels_from:
                    sort_into_classes(unpacked, self.get(kit), self.work / "unpacked.kit")
            for top, target in (file.extract or {}).items():
                tops = (
                    [place for place in unpacked.rglob(top) if place.is_dir()]
                    if top
                    else [unpacked]
                )
                if not tops:
                    raise UsageError(f"no folder {top} in it", where=path)
                # Repacked archives have folders around it
                innermost = max(tops, key=lambda place: len(place.parts))
                merge(innermost, self.folder / target)
        except UsageError as error:
            if path.parent == self.work:
                path.unlink()
            remedy = f"download it again, or from elsewhere, and put it into {self.folder}"
            raise UsageError(error.fault, remedy, error.where) from None


def merge(source: Path, target: Path) -> None:
    """Move a file or folder to its place by renaming. Existing files stay."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    elif source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            merge(child, target / child.name)


def sort_into_classes(images: Path, archive: Path, folder: Path) -> None:
    """Move ImageNet's validation images into folders of their classes.

    torchvision's parse_devkit_archive is not used: it writes next to the archive, whose folder may
    be read-only.

    Args:
        images: folder of the images.
        archive: ImageNet's development kit, which knows the classes.
        folder: where to unpack it; deleted at the end.
    """
    for number, label in enumerate(validation_labels(archive, folder), start=1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        (images / label).mkdir(exist_ok=True)
        (images / name).rename(images / label / name)


def validation_labels(archive: Path, folder: Path) -> list[str]:
    """The class of each validation image, a WordNet id; UsageError if `archive` has none."""
    from scipy.io import loadmat

    try:
        unpack_file(archive, folder)
        files = {path.name: path for path in folder.rglob("*") if path.is_file()}
        synsets = loadmat(files["meta.mat"], squeeze_me=True)["synsets"]
        ids = dict(zip(map(int, synsets["ILSVRC2012_ID"]), map(str, synsets["WNID"]), strict=True))
        labels = [
            ids[int(line)]
            for line in files["ILSVRC2012_validation_ground_truth.txt"].read_text().split()
        ]
        if not all(label.isalnum() for label in labels):  # they become names of folders
            raise ValueError("a class is not a WordNet id")
        return labels
    except Exception as error:  # as many kinds as there are ways to damage a file of MATLAB
        fault = f"{archive} does not have the classes of the validation images ({error!r})"
        raise UsageError(fault, where=archive) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
