"""The classes of ImageNet's validation images, from its development kit.

torchvision's parse_devkit_archive is not used: it writes next to the archive, whose folder may be read-only.
"""

import io
import tarfile
from pathlib import Path

from common.errors import UsageError


def validation_labels(devkit: Path) -> dict[str, str]:
    """Name of each validation image -> WordNet id of its class, from ILSVRC2012_devkit_t12.tar.gz.

    Its meta.mat numbers the classes; a line of its text file has the class number of each image.
    """
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            files = {Path(member.name).name: member for member in archive if member.isreg()}
            meta, truth = (
                archive.extractfile(files[name]).read()  # type: ignore[union-attr]  # a regular file
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        ids = dict(zip(map(int, synsets["ILSVRC2012_ID"]), map(str, synsets["WNID"]), strict=True))
        labels = {f"ILSVRC2012_val_{n:08d}.JPEG": ids[int(line)] for n, line in enumerate(truth.split(), start=1)}
        if not all(label.isalnum() for label in labels.values()):  # they become names of folders
            raise ValueError("a class is not a WordNet id")
    except (tarfile.TarError, EOFError, KeyError, ValueError, TypeError, OSError) as error:
        raise UsageError(f"{devkit} does not have the classes of the validation images ({error!r})") from None
    return labels
