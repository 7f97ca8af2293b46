"""The settings that each method uses in each protocol (recipes.yaml): a YAML file, and what the
authors' scripts add to it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UsageError

from .files import config_folder, config_names


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


def recipes_of(method: str, protocol: str) -> list[Recipe]:
    """The recipes of a method in a protocol, of a plug-in those of its base; the first that fits is
    used.
    """
    recipes = RECIPES.get(method, {}) or RECIPES.get(method.rpartition("+")[2], {})
    return list(recipes.get(protocol, recipes.get(OTHERWISE, ())))


def small_cfg(method: str, protocol: str) -> str:
    """The YAML file of a method for the small CLIP; empty if it has none."""
    names = config_names(method)
    if protocol == "cross_dataset" and SMALL[1] in names:
        return SMALL[1]
    return SMALL[0] if SMALL[0] in names else ""


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
    fitting = [entry for entry in recipes_of(method, protocol) if entry.fits(dataset, shots)]
    names = [] if cfg else config_names(method)
    others = [name for name in names if name not in SMALL]
    if not cfg and (backbone == "small" or not others):
        cfg = small_cfg(method, protocol)
    if cfg:
        return next((entry for entry in fitting if entry.cfg == cfg), Recipe(cfg))
    if fitting:
        return fitting[0]
    if protocol in names:
        return Recipe(protocol)
    if len(others) == 1:
        return Recipe(others[0])
    remedy = f"add one to {config_folder(method)}"
    if names:
        remedy = f"choose one with CFG (in a study: config): {', '.join(names)}"
    raise UsageError(
        f"{method} has {len(names)} YAML files and none for {protocol} by default", remedy
    )
