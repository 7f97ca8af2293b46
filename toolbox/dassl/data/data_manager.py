"""Data loaders from a config, with workers that may live as long as a training run."""

import hashlib
import os
import random
import sys
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from dassl.config.defaults import SAMPLERS
from dassl.data.datasets.base_dataset import build_dataset
from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform, to_tensor
from dassl.utils import UsageError, check_availability, decoders, read_image
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms as T

NO_TRANSFORM = "INPUT.NO_TRANSFORM leaves images that cannot form a batch: set it to False"


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """A "RandomSampler" or "SequentialSampler" over `data_source`; UsageError for another
    `sampler_type`.

    The other parameters are unused; published callers pass them.
    """
    check_availability(sampler_type, SAMPLERS)
    return (
        RandomSampler(data_source)
        if sampler_type == "RandomSampler"
        else SequentialSampler(data_source)
    )


def build_data_loader(  # noqa: PLR0913
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
    persistent_workers=False,
):
    """Build a torch DataLoader over a list of `Datum`.

    A training loader drops its last batch if that is smaller, unless it is the only one.

    Args:
        sampler_type: as for `build_sampler`.
        data_source, tfm, is_train: as for `DatasetWrapper`, or for the class `dataset_wrapper`
            instead of it.
        n_domain, n_ins: unused; published callers pass them.
        persistent_workers: whether a training loader of a `DatasetWrapper` is a `SteadyLoader`, if
            it has workers.

    Raises UsageError if there is no data, the sampler is unknown, or neither a transform nor a
    dataset wrapper makes tensors of the images.
    """
    if not data_source:
        raise UsageError(
            f"cannot build a data loader for a {'training' if is_train else 'test'} split without "
            "images; check the dataset's splits"
        )
    if tfm is None and dataset_wrapper is None:
        raise UsageError(NO_TRANSFORM)
    make = dataset_wrapper or DatasetWrapper
    dataset = make(cfg, data_source, transform=tfm, is_train=is_train)
    make = DataLoader
    # Test images are usually read once in a run, so persistent workers would save nothing.
    if persistent_workers and is_train and cfg.DATALOADER.NUM_WORKERS:
        make = SteadyLoader if isinstance(dataset, DatasetWrapper) else DataLoader
    return make(
        dataset,
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, data_source=data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=start_worker,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The dataset and its loaders, with other transforms and another wrapper than the config's if
    they are given.

    A transform may be a list of them: see `DatasetWrapper`. `persistent_workers` is that of
    `SimpleTrainer`.

    Attributes:
        dataset: the `DatasetBase`.
        train_loader_x, test_loader: data loaders.
        train_loader_u, val_loader: data loaders; None if the dataset lacks the split.
        num_classes, num_source_domains, lab2cname: of the dataset.
    """

    def __init__(
        self,
        cfg,
        custom_tfm_train=None,
        custom_tfm_test=None,
        dataset_wrapper=None,
        persistent_workers=False,
    ):
        self.dataset = build_dataset(cfg)
        self._num_classes = self.dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = self.dataset.lab2cname
        tfm = custom_tfm_train or build_transform(cfg, is_train=True)
        options = {"dataset_wrapper": dataset_wrapper, "persistent_workers": persistent_workers}
        train = partial(build_data_loader, cfg, is_train=True, tfm=tfm, **options)
        tfm = custom_tfm_test or build_transform(cfg, is_train=False)
        test = partial(build_data_loader, cfg, is_train=False, tfm=tfm, **options)
        x = cfg.DATALOADER.TRAIN_X
        u = x if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U
        tested = cfg.DATALOADER.TEST
        self.train_loader_x = train(x.SAMPLER, self.dataset.train_x, x.BATCH_SIZE)
        self.train_loader_u = None
        if self.dataset.train_u:
            self.train_loader_u = train(u.SAMPLER, self.dataset.train_u, u.BATCH_SIZE)
        self.val_loader = None
        if self.dataset.val:
            self.val_loader = test(tested.SAMPLER, self.dataset.val, tested.BATCH_SIZE)
        self.test_loader = test(tested.SAMPLER, self.dataset.test, tested.BATCH_SIZE)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(attrgetter("_num_classes"))
    num_source_domains = property(attrgetter("_num_source_domains"))
    lab2cname = property(attrgetter("_lab2cname"))

    def show_dataset_summary(self, cfg):
        """Print the name, domains and sizes of the dataset."""
        domains = {"Source": cfg.DATASET.SOURCE_DOMAINS, "Target": cfg.DATASET.TARGET_DOMAINS}
        rows = {"Dataset": cfg.DATASET.NAME} | {
            name: ", ".join(names) for name, names in domains.items()
        }
        rows["# classes"] = f"{self.num_classes:,}"
        for split in ("train_x", "train_u", "val", "test"):
            rows[f"# {split}"] = (
                f"{len(items):,}" if (items := getattr(self.dataset, split)) else ""
            )
        print("\n".join(f"{name:<9}  {value}" for name, value in rows.items() if value))


class DatasetWrapper(TorchDataset):
    """A list of `Datum` as a torch dataset, whose items are dicts of `img`, `label`, `domain`,
    `impath` and `index`.

    - `img` is the transformed image, a float tensor (3, H, W), or the PIL image if there is no
      transform.
    - A list of transforms gives `img`, `img2`, `img3`, ..., one for each.
    - DATALOADER.K_TRANSFORMS = k > 1 (training only) applies a transform k times: `img` is the list
      of the k results, and those from the second on are `img2`, `img3`, ... as well.
    - DATALOADER.RETURN_IMG0 adds `img0`, the image resized and normalised without augmentation.

    `transform` is a callable on PIL images, a list of them, or None, which with K_TRANSFORMS > 1 is
    a UsageError. An item whose image is missing or damaged raises ImageError: see `read_image`.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        # Of image files, by path, as far as they are known: no other file is read in their place
        self.sha256 = {}
        self.on_read = None  # called with the path and the decoded image of each item that is read
        self.seed = None  # the last seed that a worker received
        if self.k_tfm > 1 and transform is None:
            raise UsageError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but no transform is applied; set it to 1"
            )
        resize = T.Resize(
            cfg.INPUT.SIZE, interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
        )
        self.to_tensor = T.Compose([resize, *to_tensor(cfg.INPUT, cfg.INPUT.TRANSFORMS)])

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = self.read(item.impath)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform, start=1):
                views = [tfm(img0) for _ in range(self.k_tfm)]
                output["img" if i == 1 else f"img{i}"] = views[0] if self.k_tfm == 1 else views
        elif self.k_tfm == 1:
            output["img"] = self.transform(img0)
        else:
            output["img"] = [self.transform(img0) for _ in range(self.k_tfm)]
            output |= {f"img{k}": img for k, img in enumerate(output["img"][1:], start=2)}
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def __getitems__(self, indices):
        """The items of a batch. The workers of a `SteadyLoader` receive a list of `SeededIndex`."""
        if isinstance(indices[0], SeededIndex):
            seed = indices[0].seed
            if seed not in (None, self.seed):
                seed_worker(seed)
                self.seed = seed
            indices = [item.index for item in indices]
        return [self[index] for index in indices]

    @property
    def reading(self):
        """The facts that an item depends on besides its file: INPUT, the transform, decoders."""
        return f"{self.cfg.INPUT} {self.transform} {decoders()}"

    @cached_property
    def digests(self):
        """The SHA-256 of each image file, in bytes.

        From then on, an item whose file has changed raises ChangedImageError.

        Raises OSError if a file cannot be read, or is not a regular file.
        """
        for item in self.data_source:
            if not os.path.isfile(item.impath):  # a named pipe would wait for its writer
                raise FileNotFoundError(item.impath)
            content = Path(item.impath).read_bytes()
            self.sha256[item.impath] = hashlib.sha256(content).digest()
        return [self.sha256[item.impath] for item in self.data_source]

    def read(self, path):
        """The decoded image file, as INPUT.MAX_PIXELS and INPUT.EXIF_ORIENTATION say."""
        how = self.cfg.INPUT
        image = read_image(path, how.MAX_PIXELS, how.EXIF_ORIENTATION, self.sha256.get(path))
        if self.on_read:
            self.on_read(path, image)
        return image


class SteadyLoader(DataLoader):
    """A DataLoader of a `DatasetWrapper` that keeps its workers from one epoch to the next.

    torch seeds workers at their start with a number drawn from the main process's generator, whose
    state is saved in checkpoints. With torch's persistent workers the random states of later epochs
    depend on earlier ones, and a checkpoint cannot restore them. So this loader draws a number for
    each epoch and sends it along with the indices (`SeededIndex`); a worker that receives a new
    number seeds itself as torch would. Each epoch is bit-identical to one of new workers, also in a
    resumed run. Workers have the dataset as it was when they started, and there is one iterator at
    a time.

    torch offers no public way to end persistent workers. Hence the use of `_iterator`, which
    toolbox/tests/test_data.py checks.
    """

    def __init__(self, dataset, sampler, **options):
        sampler = SeededIndices(sampler)
        super().__init__(dataset, sampler=sampler, persistent_workers=True, **options)

    def __iter__(self):
        self.sampler.seed = None  # a new iterator draws the first seed itself
        if self._iterator is not None:
            seed = torch.empty((), dtype=torch.int64)
            self.sampler.seed = seed.random_(generator=self.generator).item()
        return super().__iter__()

    def stop_workers(self):
        """Release the workers; the next epoch starts new ones."""
        self._iterator = None


class SeededIndex(NamedTuple):
    """A sample's index, and the seed of the epoch; None in a worker's first epoch, which torch has
    seeded.
    """

    index: int
    seed: int | None


class SeededIndices(Sampler):
    """The indices of another sampler as `SeededIndex`."""

    def __init__(self, sampler):
        self.sampler = sampler
        self.seed = None

    def __iter__(self):
        seed = self.seed  # of this epoch
        return (SeededIndex(index, seed) for index in self.sampler)

    def __len__(self):
        return len(self.sampler)


def start_worker(number):
    """The `worker_init_fn` of all loaders: a worker does not print that its main process has
    ended.
    """

    def report(kind, error, trace):
        # Its pipes and files are gone
        if not isinstance(error, FileNotFoundError | EOFError | ConnectionError):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = report


def seed_worker(seed):
    """Seed the generators of a worker process as torch does when a worker starts."""
    worker = get_worker_info().id
    random.seed(seed + worker)
    torch.manual_seed(seed + worker)
    np.random.seed(
        np.random.SeedSequence([worker, seed & 0xFFFFFFFF, seed >> 32, 0]).generate_state(4)
    )
