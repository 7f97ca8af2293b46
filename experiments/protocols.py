"""The protocols, and the settings that each method uses in them. Scripts, studies and the demo read them here.

A protocol is a training run and the tests that follow it: which classes, and which folder below the folder of results.
Folders are laid out as by the scripts of CoOp, CoCoOp and MPL, so that parsers of their results find ours.
"""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

from .configs import CONFIGS, config_files

ELEVEN: tuple[str, ...] = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101")
ELEVEN += ("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")  # the order of the papers' tables


@dataclass(frozen=True)
class Step:
    """One run of a protocol."""

    classes: str  # `base`, `new` or `all`: DATASET.SUBSAMPLE_CLASSES
    folder: str  # with {dataset}, {name} (METHOD/CFG), {shots} and {seed}
    optional: bool = False  # only run if it is asked for


@dataclass(frozen=True)
class Protocol:
    """A training run, which also tests its prompts on its own classes; then tests on other classes or datasets."""

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
            Step("all", BASE2NEW.format(part="test_all"), optional=True),  # base and new classes together
        )
    ),
    "cross_dataset": Protocol(  # trained on a source dataset
        (Step("all", f"crossdataset/{FEW_SHOT}"), Step("all", f"crossdataset/evaluation/{FEW_SHOT}"))
    ),
    "few_shot": Protocol((Step("all", FEW_SHOT),), shots=(1, 2, 4, 8, 16)),  # CoOp's
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a method in a protocol."""

    cfg: str  # name of a YAML file in configs/trainers/<method>/ (zero-shot CLIP uses CoOp's)
    settings: tuple[str, ...] = ()  # KEY, VALUE, ... that the authors' script or documentation adds to it
    datasets: tuple[str, ...] = ()  # empty: for every dataset
    shots: tuple[int, ...] = ()  # empty: for every number of images of each class

    def fits(self, dataset: str, shots: int) -> bool:
        return (not self.datasets or dataset in self.datasets) and (not self.shots or shots in self.shots)


# PromptSRC's documentation: the Gaussian average over epochs is later and narrower than in the YAML file, except
# for six datasets.
EARLY_AVERAGE = ("imagenet", "caltech101", "oxford_pets", "food101", "ucf101", "sun397")
LATE_AVERAGE = ("TRAINER.PROMPTSRC.GPA_MEAN", "45", "TRAINER.PROMPTSRC.GPA_STD", "5")

SMALL = ("small", "small_cross_datasets")  # YAML files for the small CLIP

# Methods that use one YAML file in all protocols, also if a user adds others.
ONE_FILE = dict.fromkeys(("ZeroshotCLIP", "LinearProbe", "TipAdapter", "TipAdapterF", "CLIPAdapter"), "vit_b16")
ONE_FILE |= dict.fromkeys(("LPPlusPlus", "GDA", "TPT", "CTPT", "MTA", "ZERO"), "vit_b16")
ONE_FILE |= dict.fromkeys(("ZSLP", "CLAP"), "SGD_lr1e-1_B256_ep300")
ONE_FILE |= {"TaskRes": "adam_lr2e-4_B256_ep200_ViT16"}  # the only published one for ViT-B/16
ONE_FILE |= dict.fromkeys(("KgCoOp", "TCP"), "vit_b16_ep100_ctxv1")
ONE_FILE |= dict.fromkeys(("CoCoOp", "DePT+CoCoOp"), "vit_b16_c4_ep10_batch1_ctxv1")
ONE_FILE |= {"VPT": "vit_b16_c2_ep5_batch4_4", "IVLP": "vit_b16_c2_ep5_batch4_2+2ctx"}
ONE_FILE |= {"DePT+CoOp": "vit_b16_ep10_bs4_lr35", "DePT+KgCoOp": "vit_b16_ep10_ctxv1_bs4_lr35"}
ONE_FILE |= {"DePT+MaPLe": "vit_b16_c2_ep10_batch4_2ctx"}
ONE_FILE |= {"ProGrad": "vit_b16_ep100_ours"}  # the published ones are for RN50
ONE_FILE |= {"TDA": "vit_b16"}  # not the values that were presumably chosen on test images

# Method -> protocol (OTHERWISE: all others) -> its recipes; the first that fits is used. A method that is not here uses
# the YAML file that is named after the protocol, or the only one of its folder.
OTHERWISE = ""
RECIPES: dict[str, dict[str, tuple[Recipe, ...]]] = {
    **{method: {OTHERWISE: (Recipe(cfg),)} for method, cfg in ONE_FILE.items()},
    "CoOp": {
        # 200 epochs, on ImageNet 50: a comment in CoOp's scripts/cocoop/base2new_train.sh
        "base2new": (Recipe("vit_b16_ep50_ctxv1", datasets=("imagenet",)), Recipe("vit_b16_ctxv1")),
        "cross_dataset": (Recipe("vit_b16_ep50_ctxv1"),),
        "few_shot": (  # epochs by the number of images: CoOp's documentation
            Recipe("vit_b16_ep50", datasets=("imagenet",)),
            Recipe("vit_b16_ep50", shots=(1,)),
            Recipe("vit_b16_ep100", shots=(2, 4)),
            Recipe("vit_b16"),
        ),
    },
    "UPT": {"few_shot": (Recipe("vit_b16"),), OTHERWISE: (Recipe("vit_b16_ep50"),)},
    "MaPLe": {
        "cross_dataset": (Recipe("vit_b16_c2_ep5_batch4_2ctx_cross_datasets"),),
        OTHERWISE: (Recipe("vit_b16_c2_ep5_batch4_2ctx"),),
    },
    "MMRL": {
        "base2new": (Recipe("vit_b16_imagenet", datasets=("imagenet",)), Recipe("vit_b16")),
        # The published scripts give both: the values for single datasets (BY_DATASET) are not for this protocol.
        "cross_dataset": (
            Recipe("vit_b16_cross_datasets", ("TRAINER.MMRL.REG_WEIGHT", "0.2", "TRAINER.MMRL.REP_DIM", "512")),
        ),
        "few_shot": (Recipe("vit_b16_imagenet", datasets=("imagenet",)), Recipe("vit_b16_few_shot")),
    },
    "PromptSRC": {
        "base2new": (Recipe("vit_b16_c2_ep20_batch4_4+4ctx"),),
        "cross_dataset": (Recipe("vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets"),),
        "few_shot": (
            Recipe("vit_b16_c2_ep50_batch4_4+4ctx_few_shot", datasets=EARLY_AVERAGE),
            Recipe("vit_b16_c2_ep50_batch4_4+4ctx_few_shot", LATE_AVERAGE),
        ),
    },
    "MMA": {OTHERWISE: (Recipe("vit_b16_ep5_imnet", datasets=("imagenet",)), Recipe("vit_b16_ep5"))},
    "LoCoOp": {  # the authors' 200 classes are a fifth of ImageNet's 1,000; its base classes are 500
        "base2new": (Recipe("vit_b16_ep50", ("TRAINER.LOCOOP.TOPK", "0.2")),),
        OTHERWISE: (
            Recipe("vit_b16_ep50", datasets=("imagenet",)),
            Recipe("vit_b16_ep50", ("TRAINER.LOCOOP.TOPK", "0.2")),
        ),
    },
    "CLIPLoRA": {
        "few_shot": (Recipe("vit_b16"), Recipe("small", ("OPTIM.MAX_EPOCH", "10"), shots=(1,))),  # it has 10 steps
        OTHERWISE: (Recipe("vit_b16"),),
    },
    "MPL": {
        # The authors' script. Their repository also has vit_b4_c1_add2_rm1_cross_datasets, which no script names.
        "cross_dataset": (Recipe("vit_b4_c1_add2_rm1", ("OPTIM.MAX_EPOCH", "2")),),
        OTHERWISE: (Recipe("vit_b4_c1_add2_rm1"),),
    },
}


def recipe(method: str, protocol: str, dataset: str = "", shots: int = 16, cfg: str = "", backbone: str = "") -> Recipe:
    """The settings of a method in a protocol, on the dataset of a YAML file, with `shots` images of each class.

    Args:
        cfg: the YAML file, if the user has chosen one. The settings that belong to it in this protocol stay.
        backbone: of the run. The small CLIP has YAML files of its own, `small` and `small_cross_datasets`.

    Raises UsageError if nothing says which of several YAML files is for the protocol, or there is none.
    """
    recipes = RECIPES.get(method, {}) or RECIPES.get(method.rpartition("+")[2], {})  # of a plug-in its base's
    fitting = [each for each in recipes.get(protocol, recipes.get(OTHERWISE, ())) if each.fits(dataset, shots)]
    if cfg:
        return next((each for each in fitting if each.cfg == cfg), Recipe(cfg))
    names = [file.stem for file in config_files(method)]
    small = [name for name in SMALL[protocol == "cross_dataset" :: -1] if name in names]
    others = [name for name in names if name not in SMALL]
    if small and (backbone == "small" or not others):
        return next((each for each in fitting if each.cfg == small[0]), Recipe(small[0]))
    if fitting:
        return fitting[0]
    if protocol in names or len(others) == 1:
        return Recipe(protocol if protocol in names else others[0])
    remedy = f"choose one with CFG (in a study: config): {', '.join(names)}" if names else "add one"
    raise UsageError(f"{method} has {len(names)} YAML files and none for {protocol} by default", remedy)


def arguments(
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
    """The arguments of train.py for one run.

    Args:
        folder: of its results.
        root: folder of the datasets.
        config_file: YAML file of the method.
        dataset: name of a YAML file in `configs`/datasets/.
        options: of train.py, such as --eval-only.
        shots: images of each class; None: the dataset's YAML file says it.
        settings: KEY, VALUE, ...; the last one of a key counts.
    """
    words: list = ["--skip-finished", "--root", root, "--output-dir", folder]
    words += [] if seed is None else ["--seed", seed]
    words += ["--trainer", method, "--dataset-config-file", configs / f"datasets/{dataset}.yaml"]
    words += ["--config-file", config_file, *(("--backbone", backbone) if backbone else ()), *options]
    words += [] if shots is None else ["DATASET.NUM_SHOTS", shots]
    words += [] if classes == "all" else ["DATASET.SUBSAMPLE_CLASSES", classes]
    return list(map(str, [*words, *settings]))
