from dassl.data.datasets import DATASET_REGISTRY

from .base import DatasetError, FewShotDataset, Items


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """Aircraft by variant (Maji et al., 2013), whose own text lists are its split."""

    dataset_dir = "fgvc_aircraft"
    template = "a photo of a {}, a type of aircraft."
    image_dir = "images"
    split_file = "variants.txt"
    counts = (3334, 3333, 3333)
    n_classes = 100

    def read_split(self) -> tuple[Items, Items, Items]:
        labels = {name: label for label, name in enumerate(self.read_lines(self.root / self.split_file))}
        return tuple(self.read_list(f"images_variant_{part}.txt", labels) for part in ("train", "val", "test"))

    def read_list(self, file: str, labels: dict[str, int]) -> Items:
        """Lines of `<image id> <variant name>`."""
        rows = [line.split(" ", 1) for line in self.read_lines(self.root / file)]
        try:
            return [self.read_item(f"{image}.jpg", labels[name], name) for image, name in rows]
        except (KeyError, ValueError) as error:
            raise DatasetError(
                f"{self.root / file} is damaged ({type(error).__name__}: {error}): {self.renewal}"
            ) from None
