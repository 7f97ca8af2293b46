"""Data loaders from a config."""

from contextlib import suppress
from functools import cached_property
from operator import attrgetter

import torch
from dassl.data.datasets import build_dataset
from dassl.data.image_cache import CachingLoader, cached_images, content_of
from dassl.data.loader import SeededIndex, SteadyLoader, seed_worker, start_worker
from dassl.data.samplers import build_sampler
from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform, to_tensor
from dassl.utils import UsageError, read_image
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms as T


def build_data_loader(
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
        data_source, tfm, is_train: as for `DatasetWrapper`, or for the class `dataset_wrapper` instead of it.
        n_domain, n_ins: unused; published callers pass them.
        persistent_workers: whether a training loader of a `DatasetWrapper` is a `SteadyLoader`.

    Raises:
        UsageError: there is no data, the sampler is unknown, or neither a transform nor a dataset wrapper makes tensors
            of the images.
    """
    if not data_source:
        split = "training" if is_train else "test"
        raise UsageError(f"cannot build a data loader for a {split} split without images; check the dataset's splits")
    if tfm is None and dataset_wrapper is None:
        raise UsageError("INPUT.NO_TRANSFORM leaves images that cannot form a batch: set it to False")
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    # Test images are usually read once in a run, so persistent workers would save nothing.
    steady = persistent_workers and is_train and isinstance(dataset, DatasetWrapper)
    return (SteadyLoader if steady else CachingLoader)(
        dataset,
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, data_source=data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=start_worker,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The dataset and its loaders, with other transforms and another wrapper than the config's if they are given.

    A transform may be a list of them: see `DatasetWrapper`. `persistent_workers` is that of `SimpleTrainer`.

    Attributes:
        dataset: the `DatasetBase`.
        train_loader_x, test_loader: data loaders.
        train_loader_u, val_loader: data loaders; None if the dataset lacks the split.
        num_classes, num_source_domains, lab2cname: of the dataset.
    """

    def __init__(
        self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None, persistent_workers=False
    ):
        self.dataset = dataset = build_dataset(cfg)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        tfm_train = custom_tfm_train or build_transform(cfg, is_train=True)
        tfm_test = custom_tfm_test or build_transform(cfg, is_train=False)

        def loader(options, source, is_train):
            own = {"is_train": is_train, "tfm": tfm_train if is_train else tfm_test}
            own |= {"dataset_wrapper": dataset_wrapper, "persistent_workers": persistent_workers}
            return build_data_loader(cfg, options.SAMPLER, source, options.BATCH_SIZE, **own)

        train_x, test = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TEST
        train_u = train_x if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U
        self.train_loader_x = loader(train_x, dataset.train_x, is_train=True)
        self.train_loader_u = loader(train_u, dataset.train_u, is_train=True) if dataset.train_u else None
        self.val_loader = loader(test, dataset.val, is_train=False) if dataset.val else None
        self.test_loader = loader(test, dataset.test, is_train=False)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(attrgetter("_num_classes"))
    num_source_domains = property(attrgetter("_num_source_domains"))
    lab2cname = property(attrgetter("_lab2cname"))

    def show_dataset_summary(self, cfg):
        """Print the name, domains and sizes of the dataset."""
        domains = {"Source": cfg.DATASET.SOURCE_DOMAINS, "Target": cfg.DATASET.TARGET_DOMAINS}
        rows = {"Dataset": cfg.DATASET.NAME} | {name: ", ".join(names) for name, names in domains.items()}
        rows["# classes"] = f"{self.num_classes:,}"
        for split in ("train_x", "train_u", "val", "test"):
            rows[f"# {split}"] = f"{len(items):,}" if (items := getattr(self.dataset, split)) else ""
        print("\n".join(f"{name:<9}  {value}" for name, value in rows.items() if value))


class DatasetWrapper(TorchDataset):
    """A list of `Datum` as a torch dataset, whose items are dicts of `img`, `label`, `domain`, `impath` and `index`.

    - `img` is the transformed image, a float tensor (3, H, W), or the PIL image if there is no transform.
    - A list of transforms gives `img`, `img2`, `img3`, ..., one for each.
    - DATALOADER.K_TRANSFORMS = k > 1 (training only) applies a transform k times: `img` is the list of the k
      results, and those from the second on are `img2`, `img3`, ... as well.
    - DATALOADER.RETURN_IMG0 adds `img0`, the image resized and normalised without augmentation.
    - DATALOADER.CACHE_TEST (test and validation only) does not change the items: see `dassl.data.image_cache`.

    `transform` is a callable on PIL images, a list of them, or None, which with K_TRANSFORMS > 1 is a UsageError. An
    item whose image is missing or damaged raises ImageError: see `read_image`.
    """

    content = cached_property(content_of)

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.kept = None  # the images kept in a file
        self.seed = None  # the last seed that a worker received
        if self.k_tfm > 1 and transform is None:
            raise UsageError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but no transform is applied; set it to 1")
        resize = T.Resize(cfg.INPUT.SIZE, interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])
        self.to_tensor = T.Compose([resize, *to_tensor(cfg.INPUT, cfg.INPUT.TRANSFORMS)])

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        if self.kept is not None:
            return output | {"img": self.kept[idx]}
        img0 = self.read(item.impath)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform, start=1):
                output["img" if i == 1 else f"img{i}"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
            if self.k_tfm > 1:
                output.update({f"img{k}": img for k, img in enumerate(output["img"][1:], start=2)})
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

    def cache_test_images(self, threads):
        """Decode and resize the images that DATALOADER.CACHE_TEST keeps, unless some run has done it already."""
        if self.is_train or not self.cfg.DATALOADER.CACHE_TEST or self.return_img0 or self.kept is not None:
            return
        with suppress(OSError):  # of a missing or damaged image, which the reader of that image reports
            self.kept = cached_images(self, threads)

    def read(self, path):
        """The decoded image file, as INPUT.MAX_PIXELS and INPUT.EXIF_ORIENTATION say."""
        return read_image(path, self.cfg.INPUT.MAX_PIXELS, self.cfg.INPUT.EXIF_ORIENTATION)

    def _transform_image(self, tfm, img0):
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images
