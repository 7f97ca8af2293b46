from dassl.data.datasets import DATASET_REGISTRY

from .base import DatasetError, FewShotDataset, Items, Split
from .files import File


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """Aircraft variants (Maji et al., 2013); its split is in the text files of its archive."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    split_file = "variants.txt"
    counts = (3334, 3333, 3333)
    n_classes = 100
    template = "a photo of a {}, a type of aircraft."

    licence = "non-commercial research"
    page = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    files = (
        File(
            "fgvc-aircraft-2013b.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
            "fgvc-aircraft-2013b.tar.gz",
            about=2_750_000_000,
            extract={"data": "."},
        ),
    )

    def read_split(self) -> Split:
        labels = {
            name: label for label, name in enumerate(self.read_lines(self.root / self.split_file))
        }
        train, val, test = (
            self.read_list(f"images_variant_{part}.txt", labels)
            for part in ("train", "val", "test")
        )
        return train, val, test

    def read_list(self, file: str, labels: dict[str, int]) -> Items:
        """Lines of `<image id> <variant name>`."""
        path = self.root / file
        rows = [line.split(" ", 1) for line in self.read_lines(path)]
        try:
            return [self.read_item(f"{image}.jpg", labels[name], name) for image, name in rows]
        except (KeyError, ValueError) as error:
            fault = f"{path} is damaged ({type(error).__name__}: {error})"
            raise DatasetError(fault, self.how_to_replace, path) from None
