"""A file that a dataset is made of: where to download it, how to verify it, and which of its folders to extract."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """An archive or a text file of a dataset.

    Users may put any of these files into the dataset's folder, or into `--from FOLDER`, instead of downloading it.

    Attributes:
        name: file name.
        url, drive: its address or Google Drive id; both empty if it must be downloaded manually.
        bytes: published size; 0 if none is published.
        about: approximate size in bytes, if none is published.
        md5, sha256: published checksum.
        extract: folder inside the archive -> its place in the dataset's folder ("." is that folder); "" takes
            everything. None for a text file, which is used as it is.
        nested_archives: file name pattern of the archives inside the archive that hold the images.
        labels_from: name of the archive with the class of each image, if this one has no class folders (ImageNet's
            validation images).
    """

    name: str
    url: str = ""
    drive: str = ""
    bytes: int = 0
    about: int = 0
    md5: str = ""
    sha256: str = ""
    extract: Mapping[str, str] | None = None
    nested_archives: str = ""
    labels_from: str = ""

    @property
    def size(self) -> int:
        """Size in bytes, if need be an approximate one."""
        return self.bytes or self.about

    @property
    def max_bytes(self) -> int:
        """Upper bound on the file size, in bytes."""
        return self.bytes or 4 * self.about + (1 << 26)

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Kind and value."""
        return next(((kind, value) for kind in ("sha256", "md5") if (value := getattr(self, kind))), None)

    @property
    def link(self) -> str:
        """Address to open in a browser; empty if the file must be downloaded manually."""
        return self.url or (f"https://drive.google.com/uc?id={self.drive}" if self.drive else "")

    @property
    def targets(self) -> list[str]:
        """Files and folders that it provides, relative to the dataset's folder."""
        return [self.name] if self.extract is None else list(dict.fromkeys(self.extract.values()))
