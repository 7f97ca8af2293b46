"""Which class each of ImageNet's validation images is of, as its development kit says."""

import io
import tarfile
from pathlib import Path

from common.errors import UsageError


def validation_labels(devkit: Path) -> dict[str, str]:
    """Name of each validation image -> WordNet id of its class, from ILSVRC2012_devkit_t12.tar.gz.

    Its meta.mat numbers the classes, and a text file has the number of each image, a line each.

    Raises:
        UsageError: the archive has no such files.
    """
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            files = {Path(name).name: name for name in archive.getnames()}
            meta = archive.extractfile(files["meta.mat"]).read()
            truth = archive.extractfile(files["ILSVRC2012_validation_ground_truth.txt"]).read()
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        ids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        numbers = enumerate(truth.split(), start=1)
        return {f"ILSVRC2012_val_{image:08d}.JPEG": ids[int(number)] for image, number in numbers}
    except (tarfile.TarError, EOFError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{devkit} does not say the classes of the validation images ({error!r})") from None
