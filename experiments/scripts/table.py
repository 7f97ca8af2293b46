"""What each script in scripts/ runs: the published ones under their published paths, and this project's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..protocols import FEW_SHOT

COOP = "TRAINER.COOP.N_CTX {NCTX} TRAINER.COOP.CSC {CSC} TRAINER.COOP.CLASS_TOKEN_POSITION {CTP}"
SETTING = "nctx{NCTX}_csc{CSC}_ctp{CTP}"  # the part of a folder that says them


@dataclass(frozen=True)
class Script:
    """The runs of a script.

    Words in braces in `settings`, `folders` and `shots_name` stand for positional arguments, variables, and {dataset},
    {name}, {shots} and {seed} of a run.

    Attributes:
        does: one sentence for --help.
        form: its positional arguments. EPOCHS and KEY VALUE pairs may follow those of a training run or a test.
        protocol: a key of `PROTOCOLS`; `zero_shot` tests zero-shot CLIP.
        steps: 0 is the protocol's training run, 1 its test, `reproduce` the test of published prompts.
        method: empty if METHOD is an argument.
        cfg: the YAML file; empty: the method's recipe for the protocol.
        datasets, shots: one run for each, where they are no arguments; no shots: the protocol's.
        epoch: the epoch that the test loads, if the YAML file is the script's; None: the best or newest.
        epochs: the same, for single datasets.
        settings: more settings of all runs: KEY VALUE pairs.
        train_settings: more settings of training runs.
        variables: environment variables with their defaults.
        folders: those of the steps, where they are not the protocol's.
        shots_name: {shots} in the folders.
        repository: of the published script; empty: the script is ours.
        note: printed with each start: what users of another form have to know.
    """

    does: str
    form: str
    protocol: str
    steps: tuple[int, ...] | str = (0,)
    method: str = ""
    cfg: str = ""
    datasets: tuple[str, ...] = ()
    shots: tuple[int, ...] = ()
    epoch: int | None = None
    epochs: Mapping[str, int] = field(default_factory=dict)
    settings: str = ""
    train_settings: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    shots_name: str = "{shots}"
    repository: str = ""
    note: str = ""

    @property
    def usage(self) -> str:
        """Its arguments, required and optional."""
        if self.steps == "reproduce":
            return f"{self.form} [OPTION ...]"
        if "EPOCHS" in self.form or self.protocol == "zero_shot":
            return f"{self.form} [KEY VALUE ...]"
        return f"{self.form} [EPOCHS] [KEY VALUE ...]".strip()


ANY = {  # scripts/any/: for every method
    "base2new_train": Script("Train on the base classes and test on them.", "DATASET SEED", "base2new"),
    "base2new_test": Script("Test the trained prompts on the new classes.", "DATASET SEED", "base2new", (1,)),
    "xd_train": Script("Train on all classes of the source dataset.", "DATASET SEED", "cross_dataset"),
    "xd_test": Script("Test prompts of the dataset SOURCE on another.", "DATASET SEED", "cross_dataset", (1,)),
    "few_shot": Script("Train on 1, 2, 4, 8 and 16 images of each class.", "DATASET SEED", "few_shot"),
}
ANY["xd_test"] = replace(ANY["xd_test"], variables={"SOURCE": "imagenet"})


def own(method: str) -> dict[str, Script]:
    """This project's scripts of a method."""
    return {kind: replace(script, method=method) for kind, script in ANY.items()}


def published(
    repository: str, method: str, suffix: str, cfg: str = "", epoch: int | None = None, xd_epoch: int | None = None
) -> dict[str, Script]:
    """base2new_train, base2new_test, xd_train and xd_test in the form of MaPLe's repository: DATASET SEED."""
    scripts = {}
    for kind, script in ANY.items():
        if kind != "few_shot":
            loads = (xd_epoch if kind.startswith("xd") else epoch) if script.steps == (1,) else None
            scripts[f"{kind}{suffix}"] = replace(script, method=method, cfg=cfg, epoch=loads, repository=repository)
    return scripts


def reproduce(repository: str, method: str, protocol: str, epoch: int, cfg: str = "", form: str = "") -> Script:
    """The test of a published set of prompts."""
    form = form or "DATASET SEED WEIGHTS"
    does = "Test the published prompts in the folder WEIGHTS."
    return Script(does, form, protocol, "reproduce", method, cfg, epoch=epoch, repository=repository)


def in_folder(folder: str, scripts: Mapping[str, Script]) -> dict[str, Script]:
    return {f"{folder}/{name}": script for name, script in scripts.items()}


KGCOOPS_DATASETS: tuple[str, ...] = ("dtd", "eurosat", "fgvc_aircraft", "food101", "oxford_flowers", "oxford_pets")
KGCOOPS_DATASETS += ("stanford_cars", "ucf101", "caltech101", "sun397", "imagenet")
TCPS_DATASETS: tuple[str, ...] = ("caltech101", "dtd", "eurosat", "fgvc_aircraft", "food101", "oxford_flowers")
TCPS_DATASETS += ("oxford_pets", "stanford_cars", "ucf101", "sun397", "imagenet")
LANGUAGE = "vit_b16_c2_ep5_batch4_4ctx_language_only"
MAIN = Script(
    "Few-shot learning on all classes with seeds 1, 2, 3.",
    "DATASET CFG CTP NCTX SHOTS CSC",
    "few_shot",
    method="CoOp",
    settings=COOP,
    folders=(FEW_SHOT.replace("/seed", f"/{SETTING}/seed"),),
    repository="CoOp",
)
EVAL = Script(
    "Test on a dataset the prompts that main.sh has trained on the dataset SOURCE.",
    "DATASET CFG",
    "few_shot",
    (1,),
    "CoOp",
    epoch=50,
    shots=(16,),
    settings=COOP,
    variables={"NCTX": "16", "CSC": "False", "CTP": "end", "SOURCE": "imagenet"},
    folders=(*MAIN.folders, f"evaluation/{{name}}_{{shots}}shots/{SETTING}/{{dataset}}/seed{{seed}}"),
    repository="CoOp",
)
ZERO_SHOT = Script("Test zero-shot CLIP.", "DATASET CFG", "zero_shot", method="ZeroshotCLIP", repository="CoOp")
# A test loads epoch 2, so the training run keeps that checkpoint: its YAML file has 5 epochs.
KEEP_2 = "TRAIN.CHECKPOINT_FREQ 2"
COCOOP = published("CoOp", "CoCoOp", "", epoch=10, xd_epoch=10)
COCOOP["xd_train"] = replace(
    COCOOP["xd_train"],
    does="Train on all classes of the dataset SOURCE.",
    form="SEED",
    variables={"SOURCE": "imagenet"},
    note="trains on SOURCE (imagenet), as CoOp's script; with DATASET SEED: scripts/any/xd_train.sh CoCoOp",
)
PROMPTSRC = published("PromptSRC", "PromptSRC", "", epoch=20, xd_epoch=20)
PROMPTSRC["few_shot"] = replace(
    ANY["few_shot"],
    does="Few-shot learning on all classes with seeds 1, 2, 3.",
    form="DATASET SHOTS",
    method="PromptSRC",
    repository="PromptSRC",
    note="seeds 1, 2, 3, as PromptSRC's script; with DATASET SEED: scripts/any/few_shot.sh PromptSRC",
)
MPL = {name: replace(script, repository="MPL") for name, script in own("MPL").items() if name != "few_shot"}
MPL["xd_test"] = replace(MPL["xd_test"], epoch=2)
DEV = "the authors' repository has no YAML file of this name either: choose one with CFG"
MPL["dev_train"] = Script(
    "Train on all classes.", "DATASET SEED EPOCHS", "few_shot", (0,), "MPL", "vit_b4_c1_add2_rm1_dev", shots=(16,)
)
MPL["dev_test"] = replace(
    MPL["dev_train"],
    does="Test the prompts of dev_train.sh.",
    form="DATASET SEED",
    steps=(1,),
    epoch=10,
    folders=(FEW_SHOT, f"evaluation/{FEW_SHOT}"),
)
MPL |= {name: replace(MPL[name], repository="MPL", note=DEV) for name in ("dev_train", "dev_test")}

MMRL = {
    name: replace(ANY[kind], form="" if kind == "xd_train" else "DATASET", method="MMRL", repository="MMRL")
    for name, kind in {
        "base2new_train": "base2new_train",
        "base2new_test": "base2new_test",
        "cross_datasets_train": "xd_train",
        "cross_datasets_test": "xd_test",
        "few_shot": "few_shot",
    }.items()
}
MMRL["cross_datasets_train"] = replace(MMRL["cross_datasets_train"], datasets=("imagenet",))

# KgCoOp's, ProGrad's and TCP's scripts are not in folders of their methods.
OTHERS = "For other methods: scripts/any/, scripts/tcp/."
ROOT = {
    "base2new_train": replace(
        ANY["base2new_train"],
        does=f"Train KgCoOp on the base classes and test on them. {OTHERS}",
    ),
    "base2new_test": replace(
        ANY["base2new_test"],
        does=f"Test KgCoOp's trained prompts on the new classes. {OTHERS}",
        epoch=100,
    ),
}
for name, script in ROOT.items():
    ROOT[name] = replace(
        script,
        form="DATASET WEIGHT",
        method="KgCoOp",
        settings=f"{COOP} TRAINER.COOP.W {{WEIGHT}}",
        variables={"NCTX": "4", "CSC": "False", "CTP": "end"},
        shots_name="{shots}_{WEIGHT}",
        repository="KgCoOp",
    )
ROOT["xd_train"] = replace(
    ROOT["base2new_train"],
    does=f"Train KgCoOp on all classes of eleven datasets, from 4 images of each class. {OTHERS}",
    form="",
    protocol="few_shot",
    datasets=KGCOOPS_DATASETS,
    shots=(4,),
    settings=f"{COOP} TRAINER.COOP.W 8.0",
    shots_name="{shots}",
)
for name, method, epoch in (
    ("train_main", "CoOp", None),
    ("test_main", "CoOp", 100),
    ("train_prograd", "ProGrad", None),
    ("test_prograd", "ProGrad", 100),
):
    ROOT[f"base2new_{name}"] = replace(
        ANY[f"base2new_{name.split('_')[0]}"],
        form="DATASET",
        method=method,
        cfg="rn50_ep100",
        shots=(4,),
        epoch=epoch,
        settings=COOP if method == "CoOp" else f"{COOP} LOSS.LAMBDA 1.0",
        variables={"NCTX": "16", "CSC": "False", "CTP": "end"},
        repository="ProGrad",
    )
ROOT["main"] = replace(MAIN, repository="ProGrad")
ROOT["eval"] = replace(EVAL, shots=(4,), repository="ProGrad")
ROOT["prograd"] = replace(MAIN, method="ProGrad", settings=f"{COOP} LOSS.LAMBDA 1.0", repository="ProGrad")
ROOT["zeroshot"] = replace(ZERO_SHOT, repository="ProGrad")
TCP = Script(  # scripts/base2new_train.sh in TCP's repository, a path that is KgCoOp's here
    "Train TCP on the base classes of eleven datasets, and test it on their base and new classes.",
    "",
    "base2new",
    (0, 1),
    "TCP",
    datasets=TCPS_DATASETS,
    epoch=50,
    epochs={"sun397": 25, "imagenet": 25},
    settings=f"{COOP} TRAINER.COOP.W 1.0",
    variables={"NCTX": "4", "CSC": "False", "CTP": "end"},
    repository="TCP",
)

SCRIPTS: dict[str, Script] = {
    **in_folder("any", {name: replace(script, form=f"METHOD {script.form}") for name, script in ANY.items()}),
    "any/reproduce": replace(
        reproduce("", "", "", 0, form="METHOD PROTOCOL DATASET SEED WEIGHTS"),
        does="Test the published prompts in the folder WEIGHTS; for few_shot, SEED stands for SHOTS.",
        epoch=None,
    ),
    **in_folder("coop", own("CoOp") | {"main": MAIN, "eval": EVAL, "zeroshot": ZERO_SHOT}),
    **in_folder("cocoop", own("CoCoOp") | COCOOP),
    **in_folder("vpt", own("VPT") | published("MaPLe", "VPT", "_vpt", epoch=5, xd_epoch=2)),
    "vpt/reproduce_vpt": reproduce("MaPLe", "VPT", "base2new", 5),
    **in_folder("ivlp", own("IVLP")),
    **in_folder("independent-vlp", published("MaPLe", "IVLP", "_ivlp", epoch=5, xd_epoch=2)),
    "independent-vlp/reproduce_ivlp": reproduce("MaPLe", "IVLP", "base2new", 5),
    **in_folder("language-prompting", published("MaPLe", "IVLP", "_lp", LANGUAGE, epoch=5, xd_epoch=2)),
    "language-prompting/reproduce_lp": reproduce("MaPLe", "IVLP", "base2new", 5, LANGUAGE),
    **in_folder("maple", own("MaPLe") | published("MaPLe", "MaPLe", "_maple", epoch=5, xd_epoch=2)),
    "maple/reproduce_maple": reproduce("MaPLe", "MaPLe", "base2new", 5),
    "maple/reproduce_maple_xd": reproduce("MaPLe", "MaPLe", "cross_dataset", 2),
    **in_folder("promptsrc", own("PromptSRC") | PROMPTSRC),
    "promptsrc/reproduce_base2novel_setting": reproduce("PromptSRC", "PromptSRC", "base2new", 20),
    "promptsrc/reproduce_xd": reproduce("PromptSRC", "PromptSRC", "cross_dataset", 20),
    "promptsrc/reproduce_few_shot": reproduce("PromptSRC", "PromptSRC", "few_shot", 50, form="DATASET SHOTS WEIGHTS"),
    **in_folder("mpl", own("MPL") | MPL),
    **in_folder("mmrl", MMRL),
    "lpclip/few_shot": own("LinearProbe")["few_shot"],
    "zsclip/zeroshot": replace(ZERO_SHOT, form="DATASET [CFG]", repository="MaPLe"),
    "mvlpt/zeroshot": replace(ZERO_SHOT, repository="MVLPT"),
    "tcp/base2new_train": TCP,
    **ROOT,
}
SCRIPTS |= {
    name: replace(SCRIPTS[name], train_settings=KEEP_2)
    for name in ("vpt/xd_train_vpt", "independent-vlp/xd_train_ivlp", "language-prompting/xd_train_lp")
}
