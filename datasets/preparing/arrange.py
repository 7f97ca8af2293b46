"""From downloaded or user-supplied files to CoOp's folder layout: unpacked in a temporary folder, then moved."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from common.errors import UsageError

from ..base import DatasetError, FewShotDataset, UnknownClassError
from ..files import File
from .fetch import WrongFile, fetch, size_of, verify
from .labels import validation_labels
from .sources import Source, image_paths, missing_images
from .unpack import unpack

WORK, LOCK = ".preparing", ".preparing.lock"  # in the dataset's folder: unfinished files, lock of a running process


class Preparation:
    """Gets the missing files of a dataset under a root.

    Args:
        source: the dataset.
        root: folder of the datasets.
        from_dir: a folder with downloaded files; the dataset's own folder is always searched.
        mirror: address of a folder with every file as <dataset>/<name>, instead of the files' own addresses.
        repair: unpack the archives again and add missing images.
        broken: images to replace, relative to the dataset's folder.

    Attributes:
        problem: why the dataset cannot be used, or None.
        missing: paths of missing images, relative to the dataset's folder.
    """

    def __init__(self, source: Source, root: Path, from_dir: Path | None = None, mirror="", repair=False, broken=()):
        self.source, self.root = source, root
        self.mirror = f"{mirror.rstrip('/')}/{source.name}" if mirror else ""
        self.repair, self.broken = repair, set(broken)
        self.folder, self.command = source.folder(root), source.command(root)
        self.work = self.folder / WORK
        self.unpacked = self.work / "unpacked"
        self.staged = self.unpacked / source.dataset.dataset_dir
        self.search_dirs = [self.folder, *([from_dir / source.name, from_dir] if from_dir else [])]
        self.refresh()

    def refresh(self) -> None:
        """Set `problem` and `missing` to what is on the disk now."""
        self.problem: DatasetError | None = None
        self.missing: list[str] = []
        try:
            dataset = self.source.read_quietly(self.root)
        except DatasetError as error:
            self.problem = error
            return
        self.missing = missing_images(dataset)
        if self.missing:
            self.problem = DatasetError(
                f"{len(self.missing)} images are missing, the first {self.missing[0]}", where=self.folder
            )

    @property
    def ready(self) -> bool:
        return not (self.problem or self.repair or self.text_files())

    def local(self, file: File) -> Path | None:
        """Local path of a file (user-supplied or already downloaded), or None.

        Raises:
            UsageError: something else has its name.
        """
        for path in (folder / file.name for folder in (*self.search_dirs, self.work)):
            if path.is_file():
                return path
            if os.path.lexists(path):
                raise UsageError(f"{path} is not a regular file", f"move it elsewhere, then: {self.command}", path)
        return None

    def text_files(self) -> list[File]:
        """Split files and lists that are missing."""
        return [file for file in self.source.files if file.extract is None and not (self.folder / file.name).is_file()]

    def archives(self) -> list[File]:
        """Archives with the missing images; local ones are preferred to those that can be downloaded.

        Raises:
            UsageError: files must be downloaded manually, or another file blocks the preparation.
        """
        if not (self.problem or self.repair):
            return []
        if self.blocking_path:
            raise self.failure()
        archives = [file for file in self.source.files if file.extract is not None]
        incomplete = {target for file in archives for target in file.targets if self.is_incomplete(target)}
        needed: list[File] = []
        for file in sorted(archives, key=lambda file: (not self.local(file), not file.link)):
            if incomplete.intersection(file.targets):
                needed.append(file)
                incomplete.difference_update(file.targets)
        labels = {file.labels_from for file in needed}
        needed = [*(file for file in archives if file.name in labels), *needed]  # labels first
        manual = [file for file in needed if not (self.local(file) or file.link or self.mirror)]
        if manual:
            manual.sort(key=archives.index)
            names, size = ", ".join(file.name for file in manual), sum(file.size for file in manual) / 1e9
            put = f"put {names} ({size:.1f} GB) into {self.folder}, then: {self.command}"
            raise UsageError(
                f"{self.source.name} needs files that must be downloaded manually",
                "; ".join(filter(None, (self.source.dataset.by_hand, put))),
            )
        return needed

    def is_needed(self, target: str) -> bool:
        """Whether a run reads images there; archives also have other folders."""
        images, path = PurePosixPath(self.source.dataset.image_dir), PurePosixPath(target)
        return images == path or images in path.parents or path in images.parents

    def is_incomplete(self, target: str) -> bool:
        """Whether a folder of images, or some of its images, are missing."""
        if not self.is_needed(target):
            return False
        if self.repair or target == "." or not (self.folder / target).exists():
            return True
        return any(PurePosixPath(target) in PurePosixPath(name).parents for name in self.missing)

    def space(self) -> tuple[int, int]:
        """Bytes that the images will take, and bytes of the largest download, which is deleted afterwards."""
        archives = self.archives()
        downloads = [
            file.size - size_of(self.work / f"{file.name}.partial") for file in archives if not self.local(file)
        ]
        unpacked = sum(size_of(path) for path in self.unpacked.rglob("*"))  # before an interruption
        return max(0, sum(file.size for file in archives) - unpacked), max([0, *downloads])

    def run(self) -> None:
        """Get, verify, unpack and arrange the missing files.

        Raises:
            UsageError: a file is not available or not valid; the dataset has not changed then.
        """
        for path in (self.work, *self.work.rglob("*")):  # an earlier call makes neither links nor pipes
            if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
                raise UsageError(f"{path} is a link or not a regular file", f"delete it, then: {self.command}", path)
        created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder):
                self.refresh()
                if self.ready:  # by another process, or by one that was killed at the very end
                    shutil.rmtree(self.work, ignore_errors=True)
                    return
                self.work.mkdir(exist_ok=True)
                for file in self.text_files():
                    self.install_text(file)
                self.refresh()
                archives = self.archives()
                for file in archives:
                    self.unpack(file, archives)
                if archives:
                    self.check_staged(archives)
                    for target in (target for file in archives for target in file.targets):
                        self.move(self.staged / target, self.folder / target)
                shutil.rmtree(self.work)
        except UsageError:
            shutil.rmtree(self.unpacked, ignore_errors=True)  # downloads stay, to be resumed
            raise
        finally:
            with suppress(OSError):  # not empty
                for path in filter(Path.is_dir, (self.staged, self.unpacked, self.work, *created)):
                    path.rmdir()
        self.refresh()
        if self.problem:
            raise self.failure()

    @property
    def blocking_path(self) -> Path | None:
        """First path that blocks the preparation, as existing files are never overwritten.

        That is an invalid split or list, a folder that is not a class, a file or broken link in place of a folder, or
        something else in place of an image.
        """
        where = Path(self.problem.where or "") if self.problem else Path()
        if isinstance(self.problem, UnknownClassError):
            return where
        if where.is_file() and where.absolute().parent == self.folder.absolute():
            return self.folder / where.name
        targets = [self.folder / target for file in self.source.files if file.extract for target in file.targets]
        folders = [path for target in targets for path in (target, target.parent)]
        images = (self.folder / image for image in self.missing)
        blocking = [path for path in folders if os.path.lexists(path) and not path.is_dir()]
        return next(chain(blocking, (path for path in images if path.exists())), None)  # those are not regular files

    def failure(self) -> UsageError:
        if self.problem:
            return UsageError(self.problem.what, self.suggestion(), self.problem.where or self.folder)
        return UsageError("is not a folder", self.suggestion(), self.blocking_path)

    def suggestion(self) -> str:
        """How to solve `problem`: the command to run, and any step before it."""
        blocking = self.blocking_path or (self.folder if self.repair else None)
        if blocking:
            return f"move {blocking} elsewhere, then: {self.command}"
        incomplete = (self.is_incomplete(target) for file in self.source.files for target in file.targets)
        return self.command if self.text_files() or any(incomplete) else f"{self.command} --repair"

    def get(self, file: File) -> Path:
        """A verified file, local or downloaded."""
        path = self.local(file)
        if path is None:
            remedy = f"put {file.name} into {self.folder} manually, then: {self.command}"
            return fetch(file, self.work, remedy, self.mirror)
        if path.parent != self.work:
            try:
                verify(path, file)
            except WrongFile as error:
                raise UsageError(
                    f"{path} is not the published file ({error})", "download it again, or delete it", path
                ) from None
        return path

    def install_text(self, file: File) -> None:
        """Put a split or a list of names into the dataset's folder, after checking that a run can read it."""
        path, copy = self.get(file), self.staged / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.parent == self.work:
            path.unlink()
        try:
            copy.read_text(encoding="utf-8")
            if file.name == self.source.dataset.split_file:
                self.source.read_quietly(self.unpacked)
        except (UnicodeDecodeError, DatasetError):
            copy.unlink()
            raise UsageError(
                f"the downloaded {file.name} is incomplete or another file",
                f"download it from {file.link} and put it into {self.folder}",
            ) from None
        copy.replace(self.folder / file.name)

    def unpack(self, file: File, archives: list[File]) -> None:
        path = self.get(file)
        if not file.extract:
            return
        key = next((self.local(other) for other in archives if other.name == file.labels_from), None)
        try:
            map_path = path_mapper(file.extract, validation_labels(key) if key else None)
            unpack(path, self.staged, map_path, file.nested_archives)
        except UsageError as error:
            remedy = f"download it from elsewhere and put it into {path.parent}"
            if path.parent == self.work:
                path.unlink()
                remedy = f"run the same command again, or download it from elsewhere and put it into {self.folder}"
            raise UsageError(error.what, remedy, error.where) from None

    def check_staged(self, archives: list[File]) -> None:
        """Check that the archives have every image of the split, before anything is moved.

        Raises:
            UsageError: they do not. If all of them have a published checksum, the split is wrong and they are kept.
        """
        names = " and ".join(file.name for file in archives)
        for target in (target for file in archives for target in file.targets):
            if self.is_needed(target) and not (self.staged / target).exists():
                raise self.wrong_archive(names, f"no folder {target} in it")
        try:
            images = image_paths(self.read_staged())
        except DatasetError as error:
            if self.source.dataset.split_file:
                raise self.wrong_archive(names, error.what) from None
            return
        lost = [name for name in images if not any((path / name).is_file() for path in (self.folder, self.staged))]
        split = self.folder / self.source.dataset.split_file
        if lost and split.is_file() and all(file.checksum for file in archives):
            raise UsageError(
                f"{split} names {len(lost)} images that are not in the published {names}, the first {lost[0]}",
                f"move it elsewhere, then: {self.command}",
                split,
            )
        if lost:
            raise self.wrong_archive(names, f"{len(lost)} images of the split are not in it, the first {lost[0]}")

    def read_staged(self) -> FewShotDataset:
        """The dataset by its split, which may be among the unpacked files."""
        try:
            return self.source.read_quietly(self.root)
        except DatasetError:
            return self.source.read_quietly(self.unpacked)

    def wrong_archive(self, names: str, what: str) -> UsageError:
        """Delete the unpacked and downloaded files; the error has the reason."""
        shutil.rmtree(self.work)
        return UsageError(what, "download it from elsewhere", names)

    def move(self, staged: Path, target: Path) -> None:
        """Move a file or folder to its place; existing files are kept, except broken images."""
        if not staged.exists():
            return
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            move_atomic(staged, target)
        elif staged.is_dir():
            for child in sorted(staged.iterdir(), key=lambda path: path.is_dir()):  # lists before images
                self.move(child, target / child.name)
        elif str(target.relative_to(self.folder)) in self.broken:
            move_atomic(staged, target)


def move_atomic(staged: Path, target: Path) -> None:
    """Move a file or folder. To another disk (behind a linked folder), each file is copied, then renamed."""
    try:
        os.replace(staged, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if staged.is_dir():
            target.mkdir()
            for child in sorted(staged.iterdir()):
                move_atomic(child, target / child.name)
        else:
            partial = target.with_name(f".{target.name}.partial")
            shutil.copyfile(staged, partial)
            partial.replace(target)


def path_mapper(extract: Mapping[str, str], labels: dict[str, str] | None) -> Callable[[str], str | None]:
    """A function: path in an archive -> path in the dataset's folder, or None.

    A folder of `extract` is found at any depth, innermost first, so that repacked archives are accepted.
    """

    def map_path(name: str) -> str | None:
        parts = PurePosixPath(name).parts
        if labels is not None:
            if parts[-1] not in labels:
                return None
            parts = (labels[parts[-1]], parts[-1])
        for top, target in extract.items():
            if not top:
                return str(PurePosixPath(target, *parts))
            if top in parts[:-1]:
                start = len(parts) - 1 - parts[::-1].index(top)
                return str(PurePosixPath(target, *parts[start + 1 :]))
        return None

    return map_path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare a dataset; others wait. The lock's file exists only while it is held."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that prepares {folder}")
        lock.acquire()
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: a process that waits then makes another one
        lock.release()
