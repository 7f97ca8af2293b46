"""The images of `--pool`, which have no labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.errors import UsageError
from trainers.base.neighbours import nearest
from trainers.base.prompted import normalize

from . import banked, groups
from .features import Row
from .photos import Photos, without_copies
from .pooled import unexplained
from .rows import Photo
from .sources import Source, read_by_all
from .trials import Backbone

LEAST = 20  # images that teach something


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

    def clustered(self, learner: Backbone) -> "Unlabelled":
        """The same with clusters, in which each scene counts once.

        Args:
            learner: whose heads know these images.
        """
        examples = learner.examples
        heads = learner.heads
        firsts = torch.from_numpy(groups.firsts(examples.scenes)).to(examples.x.device)
        labelled = heads.unlabelled.whitened(examples.x[firsts]).cpu().numpy()
        others = groups.firsts(groups.numbers(self.photos))
        images = heads.unlabelled.images.cpu().numpy()[others]
        found = unexplained(labelled, images, len(heads.names), heads.seed)
        clusters = [[self.photos[others[place]].path for place in places] for places in found]
        return replace(self, clusters=clusters)

    @classmethod
    def of(cls, found: Sequence[Photo], sources: Sequence[Source], photos: Photos) -> "Unlabelled":
        """The images that all backbones can read, each once, without those of scenes of labelled
        images; each source gets their features.

        Args:
            found: with the SHA-256 of their files.

        Raises:
            UsageError: fewer than LEAST are left.
        """
        of_sources = [banked.features_of(found, source.encoder) for source in sources]
        rows, faults = read_by_all(of_sources)
        kept = with_labels(without_copies(found, rows)[0], rows, photos.images, sources[0].rows)
        notes = banked.notes_of(faults)
        if not groups.looks_known(found, rows):
            notes.append(groups.NOT_KNOWN)
        elif photos.looks and sources[0].request.groups == "auto":
            kept = of_other_scenes(kept, photos.images, {**sources[0].rows, **rows})
        left_out = sum(photo.path in rows for photo in found) - len(kept)
        if left_out:
            notes.append(
                f"Left out of the images without labels: {left_out:,} that are copies, or show "
                "scenes of labelled images"
            )
        if len(kept) < LEAST:
            raise UsageError(
                f"--pool has {len(kept)} images besides copies and scenes of labelled images",
                f"give {LEAST} or more, or leave it out",
            )
        for source, read in zip(sources, of_sources, strict=True):
            source.pool = features_of(kept, read[0])
        return cls(kept, rows, notes)


def with_labels(
    found: Sequence[Photo],
    rows: Mapping[str, Row],
    labelled: Sequence[Photo],
    of_labelled: Mapping[str, Row],
) -> list[Photo]:
    """The images without a label, with the class of the most similar labelled image as
    their label. Rows are what is known of the images.
    """
    pixels = {photo.pixels_sha256 for photo in labelled}
    others = [photo for photo in found if photo.pixels_sha256 not in pixels]
    if not others:
        return []
    known = normalize(features_of(labelled, of_labelled))
    places = nearest(normalize(features_of(others, rows)), known, 1)[1][:, 0].tolist()
    return [
        replace(photo, label=labelled[place].label)
        for photo, place in zip(others, places, strict=True)
    ]


def of_other_scenes(
    found: Sequence[Photo], labelled: Sequence[Photo], rows: Mapping[str, Row]
) -> list[Photo]:
    """The images that show no scene of a labelled one, with their scenes."""
    scenes = groups.find([*labelled, *found], rows).certain.tolist()
    of_labelled = set(scenes[: len(labelled)])
    return [
        replace(photo, scene=scene)
        for photo, scene in zip(found, scenes[len(labelled) :], strict=True)
        if scene not in of_labelled
    ]


def features_of(photos: Sequence[Photo], rows: Mapping[str, Row]) -> Tensor:
    """(photos, width), on the CPU."""
    return torch.stack([rows[photo.path].feature for photo in photos])
