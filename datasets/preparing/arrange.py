"""From downloaded or hand-copied files to CoOp's layout: built beside its place, then moved there whole."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from common.errors import UsageError

from ..base import DatasetError
from .fetch import Refused, fetch, size_of, verify
from .files import File
from .labels import validation_labels
from .sources import Source, problem, read_quietly, reason, split_images
from .unpack import unpack

WORK = ".preparing"  # what is half done, in the dataset's own folder


class Preparation:
    """Getting what a dataset lacks under a root.

    Args:
        source: the dataset.
        root: folder of the datasets.
        given: a folder of files that were got by hand, beside the dataset's own, which is always looked into.
        mirror: see `fetch`.
        repair: unpack everything again, adding what is missing.
        broken: images to be replaced, relative to the dataset's folder.
    """

    def __init__(self, source: Source, root: Path, given: Path | None = None, mirror="", repair=False, broken=()):
        self.source, self.root, self.mirror = source, root, mirror
        self.repair, self.broken = repair, set(broken)
        self.folder, self.command = source.folder(root), source.command(root)
        self.work = self.folder / WORK
        self.staged = self.work / "unpacked" / source.dataset.dataset_dir
        self.handed = [self.folder, *([given / source.name, given] if given else [])]
        self.look()

    def look(self) -> None:
        self.problem, self.missing = problem(self.source, self.root)

    @property
    def ready(self) -> bool:
        return not (self.problem or self.repair or self.texts())

    def local(self, file: File) -> Path | None:
        """Where a file is at hand: put there by somebody, or downloaded earlier (and verified)."""
        return next((path / file.name for path in (*self.handed, self.work) if (path / file.name).is_file()), None)

    def texts(self) -> list[File]:
        """Split files and lists that are missing."""
        return [file for file in self.source.files if file.take is None and not (self.folder / file.name).is_file()]

    def archives(self) -> list[File]:
        """Archives that bring missing images: those at hand before those that can be downloaded.

        Raises:
            UsageError: they must be got by hand, or would be in vain.
        """
        if not (self.problem or self.repair):
            return []
        if self.obstacle:
            raise self.failure()
        archives = [file for file in self.source.files if file.take is not None]
        lacking = {place for file in archives for place in file.places if self.lacks(place)}
        chosen, absent = [], []
        for file in sorted(archives, key=lambda file: (not self.local(file), not file.link)):
            if lacking.intersection(file.places):
                (chosen if self.local(file) or file.link or self.mirror else absent).append(file)
                lacking.difference_update(file.places)
        labels = {file.labels for file in (*chosen, *absent)}
        keys = [file for file in archives if file.name in labels]
        absent += [file for file in keys if not (self.local(file) or file.link or self.mirror)]
        if absent:
            size = sum(file.size for file in absent) / 1e9
            raise UsageError(
                f"{self.source.name} needs files that ask for your consent: {self.source.by_hand}; put "
                f"{', '.join(file.name for file in absent)} ({size:.1f} GB) into {self.folder}, then: {self.command}"
            )
        return [*keys, *chosen]  # labels first

    def matters(self, place: str) -> bool:
        """Whether a run reads images there; archives bring other things as well."""
        images, path = PurePosixPath(self.source.dataset.image_dir), PurePosixPath(place)
        return images == path or images in path.parents or path in images.parents

    def lacks(self, place: str) -> bool:
        """Whether one of the dataset's folders of images is missing, or some of what it holds."""
        if not self.matters(place):
            return False
        if self.repair or place == "." or not (self.folder / place).exists():
            return True
        return any(PurePosixPath(place) in PurePosixPath(name).parents for name in self.missing)

    def space(self) -> tuple[int, int]:
        """Bytes to come that stay, and bytes of the largest download, which goes."""
        archives = self.archives()
        downloads = [
            file.size - size_of(self.work / f"{file.name}.partial") for file in archives if not self.local(file)
        ]
        unpacked = sum(size_of(path) for path in (self.work / "unpacked").rglob("*"))  # before an interruption
        return max(0, sum(file.size for file in archives) - unpacked), max([0, *downloads])

    def run(self) -> None:
        """Get, verify, unpack and arrange what is missing.

        Raises:
            UsageError: something can't be had or is not right; the dataset is as it was before then.
        """
        fresh = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder):
                self.look()
                if self.ready:  # by another process, or by one that was killed at the very end
                    shutil.rmtree(self.work, ignore_errors=True)
                    return
                self.work.mkdir(exist_ok=True)
                for file in self.texts():
                    self.take_text(file)
                self.look()
                archives = self.archives()
                for file in archives:
                    self.unpack(file, archives)
                if archives:
                    self.check_staged(archives)
                    for place in (place for file in archives for place in file.places):
                        self.move(self.staged / place, self.folder / place)
                shutil.rmtree(self.work)
        finally:
            with suppress(OSError):  # not empty
                for path in filter(Path.is_dir, (self.staged, self.staged.parent, self.work, *fresh)):
                    path.rmdir()
        self.look()
        if self.problem:
            raise self.failure()

    @property
    def obstacle(self) -> Path | None:
        """What has to go before anything can come, as nothing is overwritten.

        That is a split or a list which is wrong, or, in place of a folder, a file or a link that leads nowhere.
        """
        files = [path for path in self.folder.iterdir() if path.is_file()] if self.folder.is_dir() else []
        wrong = [path for path in files if str(path) in self.problem]
        places = [self.folder / place for file in self.source.files if file.take for place in file.places]
        folders = [path for place in places for path in (place, place.parent)]
        wrong += [path for path in folders if os.path.lexists(path) and not path.is_dir()]
        return wrong[0] if wrong else None

    def failure(self) -> UsageError:
        return UsageError(f"{self.folder} is not as it should be: {self.problem}; {self.way_out()}")

    def way_out(self) -> str:
        """What to do about `problem`: a command, and what has to be done by hand before it."""
        if self.obstacle:
            return f"move {self.obstacle} elsewhere, then: {self.command}"
        if self.repair:
            return f"move {self.folder} elsewhere, then: {self.command}"
        lacking = self.texts() or any(self.lacks(place) for file in self.source.files for place in file.places)
        return self.command if lacking else f"{self.command} --repair"

    def get(self, file: File) -> Path:
        """A file, at hand or downloaded, and verified."""
        path = self.local(file)
        if path is None:
            remedy = f"put {file.name} into {self.folder} by hand, then: {self.command}"
            return fetch(file, self.work, remedy, self.mirror)
        if path.parent != self.work:
            try:
                verify(path, file)
            except Refused as error:
                raise UsageError(f"{path} is not the published file ({error}): get it again, or delete it") from None
        return path

    def take_text(self, file: File) -> None:
        """Put a split or a list of names in its place, if a run could read it there."""
        path, copy = self.get(file), self.staged / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.parent == self.work:
            path.unlink()
        try:
            copy.read_text(encoding="utf-8")
            if file.name == self.source.dataset.split_file:
                read_quietly(self.source, self.work / "unpacked")
        except (UnicodeDecodeError, DatasetError):
            copy.unlink()
            raise UsageError(
                f"what came as {file.name} is cut off, or something else: get it from {file.link} "
                f"and put it into {self.folder}"
            ) from None
        copy.replace(self.folder / file.name)

    def unpack(self, file: File, archives: list[File]) -> None:
        path = self.get(file)
        if not file.take:
            return
        key = next((self.local(other) for other in archives if other.name == file.labels), None)
        try:
            unpack(path, self.staged, placement(file, validation_labels(key) if key else None), file.inner)
        except UsageError as error:
            shutil.rmtree(self.work / "unpacked", ignore_errors=True)  # what was unpacked of it is as bad
            remedy = f"get it from elsewhere and put it into {path.parent}"
            if path.parent == self.work:
                path.unlink()
                remedy = f"give the command again, or get it from elsewhere and put it into {self.folder}"
            raise UsageError(f"{error}: {remedy}") from None

    def check_staged(self, archives: list[File]) -> None:
        """Refuse archives that lack what the split names, before anything is moved.

        Those with a checksum are as published: then it is the split that is wrong, and they are kept.
        """
        names, split = " and ".join(file.name for file in archives), self.folder / self.source.dataset.split_file
        places = [place for file in archives for place in file.places if self.matters(place)]
        wrong = [f"there is no {place} in it" for place in places if not (self.staged / place).exists()]
        for root in (self.root, self.work / "unpacked"):  # the split itself may be in the archive
            try:
                images = split_images(read_quietly(self.source, root))
            except DatasetError as error:
                failure = reason(error)
                continue
            lost = [
                name for name in images if not any((place / name).is_file() for place in (self.folder, self.staged))
            ]
            if lost and split.is_file() and all(file.checksum for file in archives):
                raise UsageError(
                    f"{split} names {len(lost)} images that {names} has not, as published, the first {lost[0]}: "
                    f"move it elsewhere, then: {self.command}"
                )
            wrong += [f"{len(lost)} images of the split are not in it, the first {lost[0]}"] if lost else []
            break
        else:
            wrong += [failure] if self.source.dataset.split_file else []
        if wrong:
            shutil.rmtree(self.work)
            raise UsageError(f"{names}: {wrong[0]}; get it from elsewhere")

    def move(self, staged: Path, target: Path) -> None:
        """Move a file or folder to its place whole; what is there already stays, unless it is a broken image."""
        if not staged.exists():
            return
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            put(staged, target)
        elif staged.is_dir():
            for child in sorted(staged.iterdir(), key=lambda path: path.is_dir()):  # lists before images
                self.move(child, target / child.name)
        elif str(target.relative_to(self.folder)) in self.broken:
            put(staged, target)


def put(staged: Path, target: Path) -> None:
    """Move a file or folder; to another disk, where folders may be linked from, file by file, each of them whole."""
    try:
        os.replace(staged, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if staged.is_dir():
            target.mkdir()
            for child in sorted(staged.iterdir()):
                put(child, target / child.name)
        else:
            partial = target.with_name(f".{target.name}.partial")
            shutil.copyfile(staged, partial)
            partial.replace(target)


def placement(file: File, labels: dict[str, str] | None) -> Callable[[str], str | None]:
    """Path in an archive -> path in the dataset's folder, or None.

    A folder to be taken is looked for at any depth, innermost first, so that an archive which was packed anew will do.
    """

    def place(name: str) -> str | None:
        parts = PurePosixPath(name).parts
        if labels is not None:
            if parts[-1] not in labels:
                return None
            parts = (labels[parts[-1]], parts[-1])
        for top, target in file.take.items():
            if not top:
                return str(PurePosixPath(target, *parts))
            if top in parts[:-1]:
                start = len(parts) - 1 - parts[::-1].index(top)
                return str(PurePosixPath(target, *parts[start + 1 :]))
        return None

    return place


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time prepares a dataset; the others wait. Nothing is left of the lock, whatever happens."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that prepares {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
