"""The images of `--pool`, which have no labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UsageError
from trainers.base.neighbours import nearest
from trainers.base.prompted import normalize

from . import banked, groups
from .features import Row
from .heads import Heads
from .images import Photo
from .photos import Photos, without_copies
from .pooled import unexplained

if TYPE_CHECKING:
    from .sources import Source

LEAST = 20  # images that teach something
MOST_FAULTS = 5  # that are named


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images without labels, none of which shows a scene of a labelled image.

    Attributes:
        photos: with the class of the most similar labelled image as their label, and their scenes.
        rows: what is known of each, by its path.
        notes: for the user.
        clusters: paths of images that are like no labelled one, by `pooled.unexplained`.
    """

    photos: Sequence[Photo]
    rows: Mapping[str, Row]
    notes: list[str] = field(default_factory=list)
    clusters: Sequence[Sequence[str]] = ()

    def clustered(self, heads: Heads, x: Tensor, scenes: NDArray[np.int64]) -> "Unlabelled":
        """The same with clusters, in which each scene counts once.

        Args:
            heads: that know these images.
            x: (labelled images, width), features.
            scenes: (labelled images,), their scenes.
        """
        of_labelled, of_images = (
            np.sort(np.unique(numbers, return_index=True)[1])
            for numbers in (scenes, groups.numbers(self.photos))
        )
        known = heads.unlabelled
        labelled = known.whitened(x[torch.from_numpy(of_labelled).to(x.device)]).cpu().numpy()
        images = known.images.cpu().numpy()[of_images]
        found = unexplained(labelled, images, len(heads.names), heads.seed)
        clusters = [[self.photos[of_images[place]].path for place in places] for places in found]
        return replace(self, clusters=clusters)

    @classmethod
    def of(
        cls, found: Sequence[Photo], sources: Sequence["Source"], photos: Photos
    ) -> "Unlabelled":
        """The images that all backbones can read, each once, without those of scenes of labelled
        images; each source gets their features.

        Args:
            found: with the SHA-256 of their files.

        Raises:
            UsageError: fewer than LEAST are left.
        """
        of_sources = [banked.features_of(found, source.encoder) for source in sources]
        rows, faults = of_sources[0]
        usable = [
            replace(photo, pixels_sha256=rows[photo.path].pixels_sha256)
            for photo in found
            if all(photo.path in known for known, _ in of_sources)
        ]
        kept = without_labelled(without_copies(usable)[0], rows, photos, sources[0])
        notes = [f"Left out: {fault}" for fault in list(faults.values())[:MOST_FAULTS]]
        left_out = len(usable) - len(kept)
        if left_out:
            what = "copies, or show scenes of labelled images"
            notes.append(f"Left out of the images without labels: {left_out:,} that are {what}")
        if len(kept) < LEAST:
            what = f"--pool has {len(kept)} images besides copies and scenes of labelled images"
            raise UsageError(what, f"give {LEAST} or more, or leave it out")
        for source, (known, _) in zip(sources, of_sources, strict=True):
            source.pool = features_of(kept, known)
        return cls(kept, rows, notes)


def without_labelled(
    found: Sequence[Photo], rows: Mapping[str, Row], photos: Photos, source: "Source"
) -> list[Photo]:
    """The images that show no scene of a labelled one. Each gets its scene, and as its label the
    class of the most similar labelled image.

    Args:
        rows: of these images.
        source: has the rows of labelled images.
    """
    labelled = photos.images
    pixels = {photo.pixels_sha256 for photo in labelled}
    others = [photo for photo in found if photo.pixels_sha256 not in pixels]
    if not others:
        return []
    known = normalize(features_of(labelled, source.rows))
    places = nearest(normalize(features_of(others, rows)), known, 1)[1][:, 0].tolist()
    others = [
        replace(photo, label=labelled[place].label)
        for photo, place in zip(others, places, strict=True)
    ]
    looks = photos.looks and all(photo.pixels_sha256 for photo in found if photo.bank)
    if source.request.groups != "auto" or not looks:
        return others
    scenes = groups.find([*labelled, *others], {**source.rows, **rows})[0].tolist()
    of_labelled = set(scenes[: len(labelled)])
    return [
        replace(photo, scene=scene)
        for photo, scene in zip(others, scenes[len(labelled) :], strict=True)
        if scene not in of_labelled
    ]


def features_of(photos: Sequence[Photo], rows: Mapping[str, Row]) -> Tensor:
    """(photos, width), on the CPU."""
    return torch.stack([rows[photo.path].feature for photo in photos])
