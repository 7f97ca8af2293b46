"""The protocols, which scripts, studies and the demo read here.

A protocol is a training run and the tests that follow it: which classes, and which folder below the
folder of results. Folders are laid out as by the scripts of CoOp, CoCoOp and MPL, so that parsers
of their results find ours.
"""

from dataclasses import dataclass

# In the order of the papers' tables
ELEVEN = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)


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
# CoCoOp's: trained on the first half of the classes
HALVES = (
    Step("base", BASE2NEW.format(part="train_base")),
    Step("new", BASE2NEW.format(part="test_new")),
    # Base and new classes together
    Step("all", BASE2NEW.format(part="test_all"), optional=True),
)
# Trained on a source dataset
CROSS_DATASET = (
    Step("all", f"crossdataset/{FEW_SHOT}"),
    Step("all", f"crossdataset/evaluation/{FEW_SHOT}"),
)
PROTOCOLS = {
    "base2new": Protocol(HALVES),
    "cross_dataset": Protocol(CROSS_DATASET),
    "few_shot": Protocol((Step("all", FEW_SHOT),), shots=(1, 2, 4, 8, 16)),  # CoOp's
}
