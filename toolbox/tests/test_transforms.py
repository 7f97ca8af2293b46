"""Transforms: order, sizes and values."""

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.config.defaults import TRANSFORMS
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.rand_augment import OPERATIONS, RandAugment
from PIL import Image
from torchvision.transforms import functional as F


@pytest.fixture
def image():
    torch.manual_seed(0)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def cfg_with(*opts):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", (24, 32), *opts])
    return cfg


def names(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_test_transform_resizes_and_crops(image):
    cfg = cfg_with(
        "INPUT.INTERPOLATION", "bicubic", "INPUT.TRANSFORMS", ("random_flip", "normalize")
    )
    got = build_transform(cfg, is_train=False)(image)
    resized = F.resize(image, 32, INTERPOLATION_MODES["bicubic"])
    assert resized.size == (48, 32)
    expected = F.normalize(
        F.to_tensor(F.center_crop(resized, (24, 32))), cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    )
    assert torch.equal(got, expected)

    plain = build_transform(cfg, is_train=False, choices=())(image)
    assert 0 <= plain.min() < plain.max() <= 1


def test_all_choices_return_the_input_size(image, capsys):
    for choice in TRANSFORMS:
        got = build_transform(cfg_with(), choices=[choice])(image)
        assert (got.dtype, got.shape) == (torch.float32, (3, 24, 32)), choice
    assert "GaussianBlur(kernel_size=(21, 21)" in capsys.readouterr().out


def test_training_transforms_have_a_fixed_order(capsys):
    got = names(build_transform(cfg_with(), choices=list(reversed(TRANSFORMS))))
    assert got[:5] == [
        "RandomCrop",
        "RandomResizedCrop",
        "CenterCrop",
        "RandomHorizontalFlip",
        "RandAugment",
    ]
    assert got[5:] == ["ColorJitter", "RandomGrayscale", "RandomApply", "ToTensor", "Normalize"]
    assert names(build_transform(cfg_with(), choices=[])) == ["Resize", "ToTensor"]
    assert "Building transform_train\n+ Resize(size=(24, 32), " in capsys.readouterr().out


def test_operations_of_rand_augment_have_dassls_values(image, monkeypatch):
    """At strengths 0 to 30; signs and places are drawn by Python's and NumPy's generators, as in
    Dassl.
    """
    pixels = np.asarray(image).astype(int)

    def augmented(number, strength, sign=0.0):
        monkeypatch.setattr("random.choices", lambda operations, k: [operations[number]] * k)
        monkeypatch.setattr("random.random", lambda: sign)
        monkeypatch.setattr("numpy.random.uniform", lambda low, high: low / 2)
        return np.asarray(RandAugment(1, strength)(image)).astype(int)

    assert [augmented(number, 10).shape for number in range(len(OPERATIONS))] == [pixels.shape] * 16
    assert (augmented(2, 10) == 255 - pixels).all()
    # 5 of 8 bits
    assert (augmented(4, 10) == pixels & 0b11111000).all() and (augmented(4, 30) == pixels).all()
    added = np.minimum(pixels + 110, 255)
    assert (augmented(6, 30) == np.where(added < 128, added, 255 - added)).all()
    assert abs(augmented(9, 10) - 0.7 * pixels).max() < 1  # brightness
    assert (augmented(14, 3)[:, :-10] == pixels[:, 10:]).all() and (
        augmented(14, 3)[:, -10:] == 0
    ).all()
    square = (augmented(13, 15) == [125, 123, 114]).all(axis=2)
    assert square.sum() == 21 * 21 and square[10, 20] and square[30, 40]
