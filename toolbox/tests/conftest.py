"""Shared by the tests of the toolbox."""

import pytest
import torch
from tiny_project import make_images, make_trainer


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """The images of `tiny_project`, with the few-shot samples: reading them draws no random numbers, sampling does."""
    root = tmp_path_factory.mktemp("data")
    make_images(root)
    make_trainer(root, root)
    return root
