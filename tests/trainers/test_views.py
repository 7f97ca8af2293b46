"""Views of an image against the figures of the published code, and what they may depend on."""

import hashlib
from importlib.metadata import version

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from marks import golden
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from trainers.base import views
from trainers.base.views import ViewsTransform, crop_box

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def picture() -> Image.Image:
    """The picture of the figures."""
    y, x = np.mgrid[:300, :400]
    waves = 127.5 + 127.5 * np.sin(x / 17) * np.cos(y / 23)
    a = np.stack([x * 255 / 399, y * 255 / 299, waves], -1) * 0.8
    a = a + np.random.default_rng(5).integers(0, 51, (300, 400, 3))
    return Image.fromarray(np.floor(a).astype(np.uint8))


def sha(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def centre(size=224):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (size, size)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ["normalize"]
    cfg.INPUT.PIXEL_MEAN = list(MEAN)
    cfg.INPUT.PIXEL_STD = list(STD)
    return build_transform(cfg, is_train=False, verbose=False)


def pytest_generate_tests(metafunc):
    golden(metafunc, "of_views", lambda content: "views" in content)


@pytest.fixture
def figures(of_views):
    return of_views["views"]


def same_versions(figures) -> bool:
    return all(
        version(name) == of.partition("+")[0]
        for name, of in figures["versions"].items()
        if name != "torch"
    )


def check(view: torch.Tensor, expected: dict) -> None:
    """Means, deviations, and some pixels of the first channel."""
    pixels = np.array(expected["pixels"])
    close = {"abs": 1e-3, "rel": 0}
    rows, columns = pixels.shape
    assert view[0, ::56, ::56][:rows, :columns].flatten().tolist() == pytest.approx(
        pixels.flatten(), **close
    )
    assert view.mean(dim=(1, 2)).tolist() == pytest.approx(expected["mean"], **close)
    assert view.std(dim=(1, 2)).tolist() == pytest.approx(expected["std"], **close)


def test_crops_and_flips_are_those_of_the_published_code(figures):
    chance = torch.Generator().manual_seed(3)
    image = picture()
    boxes = [
        [*crop_box(image, chance), bool(torch.rand(1, generator=chance) < 0.5)] for _ in range(8)
    ]
    assert boxes == figures["boxes"]["boxes"]
    view = ViewsTransform(centre(), (224, 224)).random_view(
        image, torch.Generator().manual_seed(3), np.random.RandomState(0)
    )
    check(view, figures["crop"])


def test_operations_are_those_of_the_published_code(figures):
    of_test = centre()
    source = of_test.transforms[1](of_test.transforms[0](picture()))
    for name, cases in figures["operations"]["severity_1"].items():
        operation = getattr(views, name)
        for case in cases:
            image = operation(source, np.random.RandomState(case["seed"]))
            assert np.asarray(image).mean(axis=(0, 1)).tolist() == pytest.approx(
                case["mean"], abs=1e-3
            )
            assert not same_versions(figures) or sha(image) == case["sha256_16"]


def test_whole_views_are_those_of_the_published_code(figures):
    for case in figures["augmented"]:
        make = ViewsTransform(centre(), (224, 224), augmix=case["augmix"])
        chance = torch.Generator().manual_seed(4)
        draw = np.random.RandomState(4)
        for expected in case["views"]:
            check(make.random_view(picture(), chance, draw), expected)


def test_views_depend_on_the_pixels_and_the_seed_alone():
    def made(image, seed=1):
        return ViewsTransform(centre(32), (32, 32), 4, True, seed)(image)

    first = made(picture())
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(made(picture()), first)
    assert (
        torch.equal(torch.get_rng_state(), state[0])
        and np.random.get_state()[1].tolist() == state[1]
    )
    same = [[torch.equal(*pair) for pair in zip(other, first, strict=True)]
            for other in (made(picture(), 2), made(picture().rotate(90)))]  # fmt: skip
    assert same == [[True, False, False, False], [False] * 4]  # view 0 is not random


@pytest.mark.parametrize("size", [(500, 5), (5, 500), (1, 1)])
def test_images_too_thin_for_a_random_crop(size):
    """Their middle is taken, as by torchvision."""
    expected = RandomResizedCrop.get_params(Image.new("RGB", size), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop_box(Image.new("RGB", size), torch.Generator()) == expected
    assert ViewsTransform(centre(32), (32, 32), 8, True)(
        Image.new("RGB", size, (200, 10, 30))
    ).shape == (8, 3, 32, 32)
