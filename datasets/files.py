"""A file that a dataset is made of: where to download it, how to verify it, and which of its
folders to extract.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """An archive or a text file of a dataset.

    Users may put any of these files into the dataset's folder, or into `--from FOLDER`, instead of
    downloading it.
    """

    name: str
    url: str = ""  # address; url and drive are empty if it must be downloaded manually
    drive: str = ""  # Google Drive id
    bytes: int = 0  # published size; 0 if none is published
    about: int = 0  # approximate size in bytes, if none is published
    md5: str = ""  # published checksum
    sha256: str = ""
    # Folder inside the archive -> its place in the dataset's folder ("." is that folder); "" takes
    # everything. None for a text file, which is used as it is.
    extract: Mapping[str, str] | None = None
    nested_archives: str = (
        ""  # file name pattern of the archives inside the archive that hold the images
    )
    labels_from: str = (
        ""  # name of the archive with the class of each image (ImageNet's validation images)
    )

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
        return next(
            ((kind, value) for kind in ("sha256", "md5") if (value := getattr(self, kind))), None
        )

    @property
    def link(self) -> str:
        """Address to open in a browser; empty if the file must be downloaded manually."""
        return self.url or (f"https://drive.google.com/uc?id={self.drive}" if self.drive else "")

    @property
    def targets(self) -> list[str]:
        """Files and folders that it provides, relative to the dataset's folder."""
        return [self.name] if self.extract is None else list(dict.fromkeys(self.extract.values()))
