"""Datasets, few-shot sampling, and data loaders."""

import hashlib
import json
import multiprocessing
import pickle
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import UsageError, set_random_seed
from PIL import ImageDraw
from tiny_project import make_cfg
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms.functional import to_tensor

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden" / "fewshot_eurosat.json"
EUROSAT = REPO.parent / "shared" / "data" / "eurosat" / "split_zhou_EuroSAT.json"


def dataset_of(*counts):
    """A dataset with `counts[label]` images of each class."""
    places = [(label, i) for label, count in enumerate(counts) for i in range(count)]
    return DatasetBase(
        train_x=[Datum(f"{label}/{i}.png", label, 0, f"class {label}") for label, i in places]
    )


@pytest.mark.golden
@pytest.mark.skipif(not EUROSAT.exists(), reason="no shared/data/eurosat beside the repository")
@pytest.mark.parametrize("run", json.loads(GOLDEN.read_text()) if GOLDEN.exists() else [])
def test_fewshot_samples_equal_those_of_the_literature(run):
    expected = json.loads(GOLDEN.read_text())[run]
    split = json.loads(EUROSAT.read_text())
    data = {
        key: [Datum(path, label, 0, name) for path, label, name in rows]
        for key, rows in split.items()
    }
    dataset = DatasetBase(train_x=data["train"])
    seed, shots = (int(part.lstrip("sedhot")) for part in run.split("_"))

    random.seed(seed)
    samples = {
        "train": dataset.generate_fewshot_dataset(data["train"], num_shots=shots),
        "val": dataset.generate_fewshot_dataset(data["val"], num_shots=min(shots, 4)),
    }
    for key, items in samples.items():
        paths = [item.impath for item in items]
        assert len(paths) == expected[f"n_{key}"]
        assert paths == expected.get(key, paths)
        assert hashlib.sha256("\n".join(paths).encode()).hexdigest() == expected[f"{key}_sha256"]


def test_fewshot_return_values_and_short_classes(capsys):
    dataset = dataset_of(5, 2)
    source = dataset.train_x
    assert dataset.generate_fewshot_dataset(source, num_shots=-1) is source
    assert capsys.readouterr().out == ""

    few = dataset.generate_fewshot_dataset(source, num_shots=3)
    assert [item.label for item in few] == [0, 0, 0, 1, 1]
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "Creating a 3-shot dataset",
        'Class "class 1" has 2 of the 3 images asked for: all are used',
    ]

    first, second = dataset.generate_fewshot_dataset(source, source, num_shots=3, repeat=True)
    assert [len(first), len(second)] == [6, 6]
    assert {item.impath for item in first if item.label == 1} <= {"1/0.png", "1/1.png"}


def test_label_with_two_names_is_refused_and_name_with_two_labels_accepted():
    cranes = [Datum("a", 0, 0, "crane"), Datum("b", 1, 0, "crane")]
    dataset = DatasetBase(train_x=cranes, test=[Datum("c", 1), Datum("d", 5, 0, "unknown")])
    assert (dataset.num_classes, dataset.classnames) == (2, ["crane", "crane"])
    other = Datum("e.png", 1, 0, "bird")
    for parts in (
        {"train_x": [*cranes, other]},
        *({"train_x": cranes, part: [other]} for part in ("val", "test")),
    ):
        with pytest.raises(UsageError, match='label 1 is called both "crane" and "bird" .e.png.'):
            DatasetBase(**parts)


def test_datum_is_read_only_and_loads_from_published_pickles():
    datum = Datum("a.png", 1, 2, "cat")
    assert vars(datum) == {"_impath": "a.png", "_label": 1, "_domain": 2, "_classname": "cat"}
    assert pickle.loads(pickle.dumps(datum)).classname == "cat"
    assert b"dassl.data.datasets.base_dataset" in pickle.dumps(datum)
    with pytest.raises(AttributeError):
        datum.label = 3
    with pytest.raises(TypeError, match="impath must be a str"):
        Datum(Path("a.png"))


def test_last_training_batch_is_dropped_unless_it_is_the_only_one(root, tmp_path):
    cfg = make_cfg(root, tmp_path)
    source = build_dataset(cfg).train_x
    for size, is_train, batches in ((5, True, 2), (5, False, 3), (13, True, 1), (12, True, 1)):
        loader = build_data_loader(
            cfg, "RandomSampler", source, size, tfm=build_transform(cfg), is_train=is_train
        )
        assert len(loader) == batches
    for is_train, split in ((True, "training"), (False, "test")):
        with pytest.raises(UsageError, match=f"a {split} split without images"):
            build_data_loader(cfg, "RandomSampler", [], is_train=is_train)


# Persistent workers do not change the batches.


@pytest.fixture
def cfg_of(root, tmp_path):
    """`cfg_of(workers)`: 12 images in batches of 4."""
    return lambda workers=2: make_cfg(root, tmp_path, "DATALOADER.NUM_WORKERS", workers)


def scribble(image):
    """A transform that uses all random generators and draws on its image."""
    numbers = [random.random(), np.random.rand(), torch.rand(1).item()]
    ImageDraw.Draw(image).point((int(16 * random.random()), 3), fill=(1, 2, 3))
    return torch.cat([to_tensor(image).flatten(), torch.tensor(numbers)])


def steady(cfg):
    """The loader under test."""
    return DataManager(cfg, custom_tfm_train=scribble, persistent_workers=True).train_loader_x


def reference(cfg):
    """torch's loader of the same images, which starts new workers each epoch."""
    dataset = DatasetWrapper(cfg, build_dataset(cfg).train_x, scribble, is_train=True)
    return DataLoader(
        dataset, 4, sampler=RandomSampler(dataset), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def epoch(loader, batches=None):
    return torch.cat(
        [torch.cat([b["img"], b["index"][:, None]], 1) for b in islice(loader, batches)]
    )


def epochs(loader, *batches):
    """The batches of some epochs, and the numbers that the main process draws after each epoch."""
    return [(epoch(loader, count), torch.rand(1), random.random()) for count in batches]


def same(one, other):
    return all(
        torch.equal(a, b) and x == y and r == s
        for (a, x, r), (b, y, s) in zip(one, other, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_equal_those_of_new_workers(cfg_of, workers):
    found = []
    for loader in (steady(cfg_of(workers)), reference(cfg_of(workers))):
        set_random_seed(3)
        found.append(epochs(loader, None, 2, None))  # the second is incomplete
    assert same(*found)
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_workers_persist_until_stopped(cfg_of):
    loader = steady(cfg_of())
    epoch(loader)
    workers = [worker.pid for worker in loader._iterator._workers]
    epoch(loader)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    loader.stop_workers()
    assert not {worker.pid for worker in multiprocessing.active_children()} & set(workers)
