"""A file of a dataset, as sources.yaml has it."""

from dataclasses import dataclass


@dataclass
class File:
    """An archive, or a text file, of a dataset; see sources.yaml."""

    name: str
    dataset: str
    url: str = ""
    drive: str = ""
    bytes: int = 0
    about: int = 0
    md5: str = ""
    sha256: str = ""
    take: dict[str, str] | None = None  # None for a text file, which is taken as it is
    inner: str = ""
    labels: str = ""

    @property
    def size(self) -> int:
        return self.bytes or self.about

    @property
    def limit(self) -> int:
        """No file is that large, in bytes."""
        return self.bytes or 4 * self.about + (1 << 26)

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Kind and value."""
        return next(((kind, value) for kind in ("sha256", "md5") if (value := getattr(self, kind))), None)

    @property
    def link(self) -> str:
        """What to open in a browser; empty where the file must be got by hand."""
        return self.url or (f"https://drive.google.com/uc?id={self.drive}" if self.drive else "")

    @property
    def places(self) -> list[str]:
        """What it brings, relative to the dataset's folder."""
        return [self.name] if self.take is None else list(dict.fromkeys(self.take.values()))
