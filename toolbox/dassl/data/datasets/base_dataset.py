"""Datasets: a list of `Datum` for each split; datasets by name."""

import itertools
import random
import sys
from collections import defaultdict
from operator import attrgetter
from pathlib import Path

from dassl.utils import Registry, UsageError

from common.download import download, unpack
from common.errors import one_line
from common.names import printable

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """Build the registered dataset `cfg.DATASET.NAME`; UsageError if there is none."""
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


class Datum:
    """One labelled image: the path of its file, its class and domain (indices from 0), and the name
    of its class.
    """

    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not isinstance(impath, str):
            raise TypeError(
                f"Datum: impath must be a str, got {type(impath).__name__}; wrap it in str()"
            )
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    impath = property(attrgetter("_impath"))
    label = property(attrgetter("_label"))
    domain = property(attrgetter("_domain"))
    classname = property(attrgetter("_classname"))


class DatasetBase:
    """A dataset. Subclasses read their files and call this constructor with lists of `Datum`.

    They are labelled training data, from which the classes are counted and named, and unlabelled
    training data, validation data and test data, which are optional; a `DataManager` needs test
    data.

    UsageError if `train_x` has no images, or a label has two names.
    """

    dataset_dir = ""  # the dataset's folder under DATASET.ROOT
    domains = []  # names of all domains

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        if not train_x:
            where = f" under {self.dataset_dir}" if self.dataset_dir else ""
            raise UsageError(
                f"{type(self).__name__} found no training images{where}; check DATASET.ROOT"
            )
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)
        names = {}
        for item in itertools.chain(train_x, val or (), test or ()):
            name = names.setdefault(item.label, item.classname)
            if item.classname not in (name, ""):  # test images may lack a class name
                fault = (
                    f'label {item.label} is called both "{name}" and '
                    f'"{item.classname}" ({item.impath})'
                )
                raise UsageError(fault, "give each class one label and one name")

    train_x = property(attrgetter("_train_x"))
    train_u = property(attrgetter("_train_u"))
    val = property(attrgetter("_val"))
    test = property(attrgetter("_test"))
    lab2cname = property(attrgetter("_lab2cname"))
    classnames = property(attrgetter("_classnames"))
    num_classes = property(attrgetter("_num_classes"))

    @staticmethod
    def get_num_classes(data_source):
        """The number of classes: the largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """Return `({label: class name}, [class names in order of label])`.

        If labels are missing in between, the list is shorter than the number of classes.
        """
        mapping = {}
        for item in data_source:
            mapping.setdefault(item.label, item.classname)
        return mapping, [mapping[label] for label in sorted(mapping)]

    def download_data(self, url, dst, from_gdrive=True):
        """Download a zip or tar archive to `dst` and extract it into the folder of that file, and
        nothing outside.

        `url` is a Google Drive link, or with `from_gdrive=False` plain http(s). An interrupted
        download is resumed. Raises UsageError if the download failed, or the downloaded file is not
        an archive, or an unsafe one.
        """
        target = Path(dst).absolute()
        partial = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if from_gdrive:
                import gdown  # slow to import and rarely needed

                gdown.download(url, str(partial), quiet=False, resume=True)
            else:
                download(url, partial, sys.maxsize)
        except Exception as error:  # gdown's exceptions changed with its versions
            fault = f"cannot download {url} ({one_line(error)})"
            raise UsageError(fault, f"download it manually and save it as {dst}") from error
        partial.replace(target)
        unpack(target, target.parent)
        print(f"{dst} is extracted to {target.parent}")

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Sample `num_shots` images of each class with Python's global random generator.

        Classes are sampled in order of first appearance. If the generator was just seeded with the
        run's seed, the samples are those of the literature.

        Args:
            data_sources: lists of `Datum`, sampled one after the other. Returns such a list, or a
                list of several.
            num_shots (int): images per class; below 1 the sources are returned unchanged.
            repeat (bool): a class with fewer images is sampled with replacement; otherwise all its
                images are used.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for source in data_sources:
            sampled = []
            for items in self.split_dataset_by_label(source).values():
                if len(items) >= num_shots:
                    sampled += random.sample(items, num_shots)
                    continue
                how = "drawn with replacement" if repeat else "all are used"
                name = printable(items[0].classname)
                print(f'Class "{name}" has {len(items)} of the {num_shots} images asked for: {how}')
                sampled += random.choices(items, k=num_shots) if repeat else items
            output.append(sampled)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source):
        """Group data by label, in order of first appearance: `{label: [Datum, ...]}`."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source):
        """Group data by domain, in order of first appearance: `{domain: [Datum, ...]}`."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
