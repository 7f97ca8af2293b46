"""The classes of ImageNet's validation images, from its development kit.

torchvision's parse_devkit_archive is not used: it accepts one archive only by a fixed checksum, extracts all of it to
the system's temporary folder and writes a file beside it, where users may keep their archives read-only.
"""

import io
import tarfile
from pathlib import Path

from common.errors import UsageError


def validation_labels(devkit: Path) -> dict[str, str]:
    """Name of each validation image -> WordNet id of its class, from ILSVRC2012_devkit_t12.tar.gz.

    Its meta.mat numbers the classes; a line of its text file has the class number of each image.

    Raises:
        UsageError: the archive has no such files.
    """
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            files = {Path(member.name).name: member for member in archive if member.isreg()}
            meta, truth = (
                io.BytesIO(archive.extractfile(files[name]).read())  # type: ignore[union-attr]  # a regular file
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        ids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        numbers = enumerate(truth.read().split(), start=1)
        return {f"ILSVRC2012_val_{image:08d}.JPEG": ids[int(number)] for image, number in numbers}
    except (tarfile.TarError, EOFError, KeyError, ValueError, TypeError, OSError) as error:
        raise UsageError(f"{devkit} does not have the classes of the validation images ({error!r})") from None
