"""Models of open_clip that are not CLIP's: features as its own, prompts as a computation of the test, adapters."""

import pytest
import torch
from tiny_models import FAMILIES, both, rows_of

from clip import TextPrompts, encode_image, encode_text

TEXTS = ("a photo of a river.", "red", "an old green field with one tree.")


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda family: made.setdefault(family, None) or made.update({family: both(FAMILIES[family])}) or made[family]


def images_of(model, count=2):
    size = model.visual.image_size
    return torch.randn(count, 3, *(size if isinstance(size, tuple) else (size, size)), generator=torch.manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_open_clips_own(family, models):
    theirs, ours = models(family)
    images, ids = images_of(ours), rows_of(ours, *TEXTS)
    expected = theirs.encode_image(images, normalize=False), theirs.encode_text(ids, normalize=False)
    found = encode_image(ours, images).feature, encode_text(ours, TextPrompts(ids))
    again = ours.encode_image(images), ours.encode_text(ids)
    for features in (found, again):
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert [tensor.std(dim=0).mean() > 1e-3 for tensor in expected] == [True, True], "all have one feature"
