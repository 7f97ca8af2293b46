"""From published files to CoOp's folder layout: fetch, verify, unpack into a temporary folder, rename."""

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from common.errors import UsageError
from common.files import scratch

from ..base import DatasetError, missing_files
from ..files import File
from .fetch import WrongFile, fetch, verify
from .sources import Source, image_paths
from .unpack import unpack

WORK, LOCK = ".preparing", ".preparing.lock"  # in the dataset's folder: unfinished files, lock of a running process
RESERVE = 1 << 30  # bytes of the disk to leave free


class Preparation:
    """Gets the missing files of a dataset under a root. Existing files are neither changed nor deleted.

    Args:
        source: the dataset.
        root: folder of the datasets.
        from_dir: a folder with downloaded files; the dataset's own folder is always searched.
        mirror: address of a folder with every file as <dataset>/<name>, instead of the files' own addresses.
    """

    def __init__(self, source: Source, root: Path, from_dir: Path | None = None, mirror: str = ""):
        self.source, self.root, self.command = source, root, source.command(root)
        self.folder = source.folder(root)
        self.work = self.folder / WORK
        self.stage = self.work  # while it runs, a root where the dataset's folder is built
        given = [from_dir / source.name, from_dir] if from_dir else []
        self.places = [self.folder, *given, self.work]  # of local files
        self.mirror = f"{mirror.rstrip('/')}/{source.name}" if mirror else ""

    def problem(self) -> tuple[DatasetError | None, list[str]]:
        """Why a run cannot use the dataset, or None, and the images of its split that do not exist."""
        try:
            dataset = self.source.read_quietly(self.root)
        except DatasetError as error:
            return error, []
        missing = [os.path.relpath(path, dataset.root) for path in missing_files(image_paths(dataset))]
        if not missing:
            return None, []
        return DatasetError(f"{len(missing)} images are missing, the first {missing[0]}", where=self.folder), missing

    def is_ready(self) -> bool:
        return not self.missing_texts() and self.problem()[0] is None

    def with_command(self, problem: UsageError) -> UsageError:
        """The same error, whose remedy is the command to run, and any step before it."""
        before = f"move {problem.where} elsewhere, then: " if os.path.lexists(problem.where or "") else ""
        return UsageError(problem.what, before + self.command, problem.where)

    def run(self) -> None:
        """Get, verify, unpack and rename the missing files.

        Raises:
            UsageError: a file is not available or not valid; the dataset has not changed then.
        """
        for path in (self.work, *self.work.rglob("*")):  # this command makes neither links nor pipes
            if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
                raise self.with_command(UsageError(f"{path} is a link or not a regular file", where=path))
        self.check_space(self.missing_archives())
        created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / LOCK
        if lock.exists():
            print(f"{lock} exists: waiting while another process prepares this dataset")
        try:
            with FileLock(lock), ExitStack() as stack:
                stack.callback(lock.unlink, missing_ok=True)  # while it is held: a process that waits makes another one
                self.work.mkdir(exist_ok=True)
                self.stage = stack.enter_context(scratch(self.work, "unpacked"))
                for file in self.missing_texts():
                    self.install(file)
                archives = self.missing_archives()
                for file in archives:
                    self.unpack(file)
                self.check_images(archives)
                merge(self.staged, self.folder)
                shutil.rmtree(self.work)
        finally:  # downloads stay, to be resumed
            with suppress(OSError):  # not empty
                for path in (self.work, *created):
                    path.rmdir()
        problem, _ = self.problem()
        if problem:
            raise self.with_command(problem)

    @property
    def staged(self) -> Path:
        """The dataset's folder in `stage`."""
        return self.source.folder(self.stage)

    def missing_texts(self) -> list[File]:
        """Split files and lists that are missing."""
        return [file for file in self.source.files if file.extract is None and not (self.folder / file.name).is_file()]

    def missing_archives(self) -> list[File]:
        """Archives with the missing images. Local archives are preferred to those that can be downloaded.

        Raises:
            UsageError: an archive must be downloaded manually, or something is in the way.
        """
        problem, missing = self.problem()
        if problem is None:
            return []
        archives = [file for file in self.source.files if file.extract is not None]
        absent, needed = set[str](), set[str]()
        for target in (target for file in archives for target in file.targets):
            path = self.folder / target
            if os.path.lexists(path) and not path.is_dir():
                raise self.with_command(UsageError("is not a folder", where=path))
            if missing or target == "." or not path.exists():
                absent.add(target)
        for file in sorted(archives, key=lambda file: (not self.local(file), not file.link)):
            if absent.intersection(file.targets):
                needed |= {file.name, file.labels_from}
                absent.difference_update(file.targets)
        if Path(problem.where or "").is_file() or not (needed or self.missing_texts()):  # a damaged split
            raise self.with_command(problem)
        archives = [file for file in archives if file.name in needed]
        manual = [file for file in archives if not (self.local(file) or file.link or self.mirror)]
        if manual:
            names, size = ", ".join(file.name for file in manual), sum(file.size for file in manual) / 1e9
            put = f"put {names} ({size:.1f} GB) into {self.folder}, then: {self.command}"
            what = f"{self.source.name} needs files that must be downloaded manually"
            raise UsageError(what, "; ".join(filter(None, (self.source.dataset.manual_steps, put))))
        return archives

    def local(self, file: File) -> Path | None:
        """Local path of a file (user-supplied or already downloaded), or None."""
        for path in (place / file.name for place in self.places):
            if path.is_file():
                return path
            if os.path.lexists(path):
                raise self.with_command(UsageError(f"{path} is not a regular file", where=path))
        return None

    def check_space(self, archives: list[File]) -> None:
        """Check that the disk has enough bytes for the images, and for the largest archive while it is unpacked."""
        downloads = [file.size for file in archives if not self.local(file)]
        need = sum(file.size for file in archives) + max([0, *downloads])
        place = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if need and need + RESERVE > free:
            what = f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free"
            raise UsageError(what, "free some space, or choose another --root")

    def get(self, file: File) -> Path:
        """A verified file, local or downloaded."""
        path = self.local(file)
        if path is None:
            remedy = f"put {file.name} into {self.folder} manually, then: {self.command}"
            return fetch(file, self.work, remedy, self.mirror)
        try:
            if path.parent != self.work:  # else it was verified when it was downloaded
                verify(path, file)
        except WrongFile as error:
            what = f"{path} is not the published file ({error})"
            raise UsageError(what, "download it again, or delete it", path) from None
        return path

    def install(self, file: File) -> None:
        """Put a split or a list of names into the dataset's folder, after checking that a run can read the split."""
        copy = self.staged / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.get(file), copy)
        (self.work / file.name).unlink(missing_ok=True)
        try:
            if file.name == self.source.dataset.split_file:
                self.source.read_quietly(self.stage)
        except DatasetError:
            remedy = f"download it from {file.link} and put it into {self.folder}"
            raise UsageError(f"the downloaded {file.name} is incomplete or another file", remedy) from None
        copy.replace(self.folder / file.name)

    def unpack(self, file: File) -> None:
        """Unpack an archive, and move its folders to their places in `staged`."""
        path, raw, devkit = self.get(file), self.stage / ".raw", self.stage / ".devkit"
        labels = [self.get(other) for other in self.source.files if other.name == file.labels_from]
        try:
            unpack(path, raw, file.nested_archives)
            for archive in labels:
                unpack(archive, devkit)
                sort_into_classes(raw, devkit, archive)
            for top, target in (file.extract or {}).items():
                found = [place for place in raw.rglob(top) if place.is_dir()] if top else [raw]
                if not found:
                    raise UsageError(f"no folder {top} in it", where=path)
                innermost = max(found, key=lambda place: len(place.parts))  # repacked archives have folders around it
                merge(innermost, self.staged / target)
        except UsageError as error:
            if path.parent == self.work:
                path.unlink()
            remedy = f"download it again, or from elsewhere, and put it into {self.folder}"
            raise UsageError(error.what, remedy, error.where) from None

    def check_images(self, archives: list[File]) -> None:
        """Check that the archives have every image of a split file, before anything is moved."""
        _, missing = self.problem()
        lost = [name for name in missing if not (self.staged / name).is_file()]
        if lost:
            what = f"{len(lost)} images of the split are not in {' and '.join(file.name for file in archives)}"
            split = self.folder / self.source.dataset.split_file
            remedy = f"move {split} or {self.work} elsewhere, then: {self.command}"
            raise UsageError(f"{what}, the first {lost[0]}", remedy, self.folder)


def merge(source: Path, target: Path) -> None:
    """Move a file or folder to its place by renaming. Existing files stay."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    elif source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            merge(child, target / child.name)


def sort_into_classes(images: Path, devkit: Path, archive: Path) -> None:
    """Move ImageNet's validation images into folders of their classes, which its development kit knows.

    `devkit` is the folder that the archive was unpacked into.

    torchvision's parse_devkit_archive is not used: it writes next to the archive, whose folder may be read-only.
    """
    from scipy.io import loadmat

    try:
        files = {path.name: path for path in devkit.rglob("*") if path.is_file()}
        meta, truth = files["meta.mat"], files["ILSVRC2012_validation_ground_truth.txt"]
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        ids = dict(zip(map(int, synsets["ILSVRC2012_ID"]), map(str, synsets["WNID"]), strict=True))
        labels = [ids[int(line)] for line in truth.read_text().split()]
        if not all(label.isalnum() for label in labels):  # they become names of folders
            raise ValueError("a class is not a WordNet id")
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as there are ways to damage a file of MATLAB
        what = f"{archive} does not have the classes of the validation images ({error!r})"
        raise UsageError(what, where=archive) from None
    for number, label in enumerate(labels, start=1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        (images / label).mkdir(exist_ok=True)
        (images / name).rename(images / label / name)
