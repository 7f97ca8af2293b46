"""The protocols, and the settings that each method uses in them. Scripts, studies and the demo read
them here.

A protocol is a training run and the tests that follow it: which classes, and which folder below the
folder of results. Folders are laid out as by the scripts of CoOp, CoCoOp and MPL, so that parsers
of their results find ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UsageError

from .configs import CONFIGS, config_files, config_folder
from .methods import plugin_of

ELEVEN: tuple[str, ...] = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
)
ELEVEN += ("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")  # the order of the papers' tables


@dataclass(frozen=True)
class Step:
    """One run of a protocol."""

    classes: str  # `base`, `new` or `all`: DATASET.SUBSAMPLE_CLASSES
    folder: str  # with {dataset}, {name} (METHOD/CFG), {shots} and {seed}
    optional: bool = False  # only run if it is asked for


@dataclass(frozen=True)
class Protocol:
    """A training run, which also tests its prompts on its own classes; then tests on other classes
    or datasets.
    """

    steps: tuple[Step, ...]
    shots: tuple[int, ...] = (16,)  # images of each class


SEEDS = (1, 2, 3)  # of most papers; MPL's has six
BASE2NEW = "base2new/{part}/{{dataset}}/shots_{{shots}}/{{name}}/seed{{seed}}"
FEW_SHOT = "{dataset}/{name}_{shots}shots/seed{seed}"
PROTOCOLS = {
    "base2new": Protocol(  # CoCoOp's: trained on the first half of the classes
        (
            Step("base", BASE2NEW.format(part="train_base")),
            Step("new", BASE2NEW.format(part="test_new")),
            # Base and new classes together
            Step("all", BASE2NEW.format(part="test_all"), optional=True),
        )
    ),
    "cross_dataset": Protocol(  # trained on a source dataset
        (
            Step("all", f"crossdataset/{FEW_SHOT}"),
            Step("all", f"crossdataset/evaluation/{FEW_SHOT}"),
        )
    ),
    "few_shot": Protocol((Step("all", FEW_SHOT),), shots=(1, 2, 4, 8, 16)),  # CoOp's
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a method in a protocol."""

    cfg: str  # name of a YAML file in configs/trainers/<method>/ (zero-shot CLIP uses CoOp's)
    # KEY, VALUE, ... that the authors' script or documentation adds to it
    settings: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # empty: for every dataset
    shots: tuple[int, ...] = ()  # empty: for every number of images of each class

    @classmethod
    def read(cls, entry: Any) -> "Recipe":
        """A recipe from the name of its YAML file, or from its fields."""
        given = {"cfg": entry} if isinstance(entry, str) else entry
        fields: dict[str, Any] = {
            key: tuple(x) if isinstance(x, list) else x for key, x in given.items()
        }
        return cls(**fields)

    def fits(self, dataset: str, shots: int) -> bool:
        return (not self.datasets or dataset in self.datasets) and (
            not self.shots or shots in self.shots
        )


SMALL = ("small", "small_cross_datasets")  # YAML files for the small CLIP
OTHERWISE = "otherwise"  # every protocol that recipes.yaml does not name


RECIPES: dict[str, dict[str, tuple[Recipe, ...]]] = {}  # by method and protocol
for _method, _recipes in yaml.safe_load(
    Path(__file__).with_name("recipes.yaml").read_text()
).items():
    _by_protocol = {OTHERWISE: [_recipes]} if isinstance(_recipes, str) else _recipes
    RECIPES[_method] = {
        protocol: tuple(map(Recipe.read, entries)) for protocol, entries in _by_protocol.items()
    }


def recipe(
    method: str,
    protocol: str,
    dataset: str = "",
    shots: int = 16,
    cfg: str = "",
    backbone: str = "",
) -> Recipe:
    """The settings of a method in a protocol, on the dataset of a YAML file, with `shots` images of
    each class.

    Args:
        cfg: the YAML file, if the user has chosen one. The settings that belong to it in this
            protocol stay.
        backbone: of the run. The small CLIP has YAML files of its own, `small` and
            `small_cross_datasets`.

    Raises UsageError if nothing says which of several YAML files is for the protocol, or there is
    none.
    """
    # Of a plug-in its base's
    recipes = RECIPES.get(method, {}) or RECIPES.get(method.rpartition("+")[2], {})
    fitting = [
        entry
        for entry in recipes.get(protocol, recipes.get(OTHERWISE, ()))
        if entry.fits(dataset, shots)
    ]
    names = [] if cfg else [file.stem for file in config_files(method)]
    small = [name for name in SMALL[protocol == "cross_dataset" :: -1] if name in names]
    others = [name for name in names if name not in SMALL]
    if cfg or (small and (backbone == "small" or not others)):
        name = cfg or small[0]
        return next((entry for entry in fitting if entry.cfg == name), Recipe(name))
    if fitting:
        return fitting[0]
    if protocol in names or len(others) == 1:
        return Recipe(protocol if protocol in names else others[0])
    remedy = f"add one to {config_folder(method)}"
    remedy = f"choose one with CFG (in a study: config): {', '.join(names)}" if names else remedy
    raise UsageError(
        f"{method} has {len(names)} YAML files and none for {protocol} by default", remedy
    )


def train_argv(  # noqa: PLR0913
    *,
    folder: Path,
    root: Path,
    method: str,
    config_file: Path,
    dataset: str,
    configs: Path = CONFIGS,
    seed: int | None = None,
    backbone: str = "",
    options: tuple = (),
    shots: int | None = None,
    classes: str = "all",
    settings: tuple = (),
) -> list[str]:
    """The arguments of train.py for one run, with its results in `folder`.

    `dataset` is the name of a YAML file in `configs`/datasets/, which says the shots if they are
    None. `settings` are KEY, VALUE, ...; the last one of a key counts.
    """
    words: list = ["--skip-finished", "--root", root, "--output-dir", folder]
    words += ["--plugin", plugin] if (plugin := plugin_of(method)) else []
    words += [] if seed is None else ["--seed", seed]
    words += ["--trainer", method, "--dataset-config-file", configs / f"datasets/{dataset}.yaml"]
    words += [
        "--config-file",
        config_file,
        *(("--backbone", backbone) if backbone else ()),
        *options,
    ]
    words += [] if shots is None else ["DATASET.NUM_SHOTS", shots]
    words += [] if classes == "all" else ["DATASET.SUBSAMPLE_CLASSES", classes]
    return list(map(str, [*words, *settings]))
