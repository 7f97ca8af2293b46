"""Sets of checkpoints in the folders that authors publish them in, as a study that only tests."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from common.errors import UsageError

from ..protocols import BASE2NEW, PROTOCOLS, Step
from .spec import RunSequence, Study

VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
# protocol -> folders of the prompts of a dataset (cross_dataset: of the source) and a seed.
LAYOUTS = {
    "base2new": (
        "{dataset}/base/seed{seed}",  # MaPLe, PromptSRC: an archive for each dataset
        "base/seed{seed}",  # one of these archives
        "base2new/train_base/{dataset}/shots_{shots}/{method}/*/seed{seed}",  # output folders: CoCoOp, MPL
        "train_base/{dataset}/shots_{shots}/{method}/*/seed{seed}",
        "base2new/train_base/{dataset}/shots_{shots}_*/{method}/*/seed{seed}",  # KgCoOp, TCP: with a weight
        "train_base/{dataset}/shots_{shots}_*/{method}/*/seed{seed}",
        "base2new/train_base/{dataset}/shots_{shots}/{method}/seed{seed}",  # MMA
        "train_base/{method}/{dataset}/shots{shots}/*/seed{seed}",  # DePT
    ),
    "cross_dataset": (
        "{dataset}/seed{seed}",
        "seed{seed}",
        "crossdataset/{dataset}/{method}/*/seed{seed}",
        "{dataset}/{method}/*_{shots}shots/seed{seed}",  # output folders of CoCoOp, MaPLe
        "{dataset}/{method}/*_{shots}shots/nctx*/seed{seed}",  # CoOp
        "base2new/train_base/{dataset}/shots_{shots}/{method}/*_cross_datasets/seed{seed}",  # MMRL
        "{method}/{dataset}/shots{shots}/*/seed{seed}",  # DePT
        "*/{dataset}/{shots}shots/seed{seed}",  # CLIP-LoRA: a folder for each backbone
    ),
    "few_shot": (
        "{dataset}/{shots}shot/seed{seed}",  # PromptSRC
        "{shots}shot/seed{seed}",
        "{dataset}/{method}/*_{shots}shots/seed{seed}",
        "{dataset}/{method}/*_{shots}shots/nctx*/seed{seed}",  # CoOp, ProGrad
        "few_shot/{dataset}/shots_{shots}/{method}/*/seed{seed}",  # MMRL
        "*/{dataset}/{shots}shots/seed{seed}",  # CLIP-LoRA
        "{dataset}/{shots}shots/seed{seed}",
    ),
}
# Names of methods and datasets in their folders, where these are others than here.
NAMES = {"MMA": "MultiModalAdapter", "fgvc_aircraft": "fgvc"}
NAMES |= {f"DePT+{base}": f"ExtrasLinearProbe{base}" for base in ("CoOp", "CoCoOp", "KgCoOp", "MaPLe")}
FILES = "*/model*.pth.tar*", "lora_weights.pt"
Key = tuple[str, int, int]  # dataset, shots, seed


def find_prompts(folder: Path, protocol: str, method: str, key: Key, alone: bool) -> Path | None:
    """The folder of a training run in a set of checkpoints; None if the set has none.

    Args:
        folder: of the set.
        protocol: a key of LAYOUTS.
        key: dataset, shots and seed of the training run.
        alone: whether the set may be of this dataset only, without its name.

    Raises:
        UsageError: several folders fit.
    """
    dataset, shots, seed = key
    names = [(NAMES.get(method, method), name) for name in (NAMES.get(dataset, dataset), dataset)]
    for layout, (of_method, of_dataset) in product(LAYOUTS[protocol], dict.fromkeys([(method, dataset), *names])):
        if "{dataset}" not in layout and not alone:
            continue
        pattern = layout.format(dataset=of_dataset, shots=shots, seed=seed, method=of_method)
        fitting = map(Path, sorted(glob.glob(f"{glob.escape(str(folder))}/{pattern}")))
        found = [path for path in fitting if any(any(path.glob(file)) for file in FILES)]
        if len(found) > 1:
            raise UsageError(
                f"{found[0]} and {found[1]} are both of {dataset}, seed {seed}", "keep one of them", folder
            )
        if found:
            return found[0]
    return None


@dataclass(frozen=True)
class PublishedStudy(Study):
    """A study whose runs test a set of checkpoints.

    Attributes:
        prompts: folder of the training run by dataset (cross_dataset: the source), shots and seed.
        epoch: of the checkpoints; None for the best or newest.
    """

    prompts: dict[Key, Path] = field(default_factory=dict, hash=False)
    epoch: int | None = None

    def sequences_of(self, protocol: str) -> Iterator[RunSequence]:
        """The tests of the prompts. From base to new classes, a test of the base classes has its own folder, too."""
        steps = PROTOCOLS[protocol].steps[-1:]
        if protocol == "base2new":
            steps = tuple(Step(classes, BASE2NEW.format(part=f"test_{classes}")) for classes in ("base", "new"))
        epoch = () if self.epoch is None else ("--load-epoch", self.epoch)
        for ((trained_on, shots, seed), prompts), variant in product(self.prompts.items(), self.variants):
            use = ("--eval-only", "--model-dir", prompts, *epoch)
            for step, dataset in product(steps, self.targets or (trained_on,)):
                yield (self.run(step, dataset, protocol, variant, trained_on, seed, shots, *use),)
