"""Shared by the tests of the toolbox."""

import pytest
import torch
from tiny_project import make_images


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder with the images of `tiny_project`."""
    root = tmp_path_factory.mktemp("data")
    make_images(root)
    return root
