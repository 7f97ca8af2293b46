"""The YAML files in configs/trainers have the values that are published under their names, and set
nothing besides.

`published_settings.json` has the values of the published files. `ALLOWED` says what differs, and
why.
"""

import json
from ast import literal_eval
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from dassl.config import CfgNode
from marks import one_line

import trainers
from common.start import ROOT
from configs.files import known_datasets, read_yaml
from configs.recipes import recipe
from runs.arguments import parse_arguments
from runs.configuration import flatten
from runs.run_spec import setup_cfg

FACTS = json.loads(Path(__file__).with_name("published_settings.json").read_text())
REPOSITORIES = [name for name in FACTS if name != "what"]
# Repositories that have not the name of the method
AUTHORS = {
    "CoCoOp": "CoOp",
    "VPT": "MaPLe",
    "IVLP": "MaPLe",
}
CONFIGS = ROOT / "configs/trainers"
# Published names
OTHERS = ("TRAINER.MMRLpp", "TRAINER.CoPrompt")
KEYS = ("TRAINER.W", "TRAINER.DISTILL")
NOT_SET = "not set"
COMPUTES_THE_SAME = "it changes no result, and takes less memory"
SCRIPTS = "the published scripts set it: see test_published_scripts.py"
TCP_EPOCHS = {"ImageNet": {"OPTIM.MAX_EPOCH": 25}, "SUN397": {"OPTIM.MAX_EPOCH": 25}}
WEIGHTS = {
    "StanfordCars": 7.0,
    "FGVCAircraft": 6.0,
    "SUN397": 6.0,
    "DescribableTextures": 6.0,
    "Food101": 5.0,
}
WEIGHTS |= {
    "OxfordFlowers": 4.0,
    "UCF101": 3.0,
    "ImageNet": 0.5,
    "Caltech101": 0.5,
    "OxfordPets": 0.2,
    "EuroSAT": 0.01,
}
MMRL_WEIGHTS = {name: {"TRAINER.MMRL.REG_WEIGHT": weight} for name, weight in WEIGHTS.items()}
MMRL_WEIGHTS["EuroSAT"]["TRAINER.MMRL.REP_DIM"] = 2048
DATASETS = {
    name: read_yaml(ROOT / f"configs/datasets/{name}.yaml")["DATASET"]["NAME"]
    for name in known_datasets()
}


def in_code(repository: str, section: str, table: str = "by_dataset") -> dict[str, dict]:
    """What a repository sets in its code for single datasets, for the method with this section."""
    return {
        DATASETS[dataset]: {
            key: value for key, value in values.items() if key.startswith((section, "OPTIM."))
        }
        for dataset, values in FACTS[repository][table].items()
    }


# Differences from the authors' file: the files, with * for any text; the key; the value there; the
# value here; why.
ALLOWED = [
    ("*", "DATALOADER.NUM_WORKERS", 8, 4, COMPUTES_THE_SAME),
    ("MMRL/*", "DATALOADER.TEST.BATCH_SIZE", 250, 100, COMPUTES_THE_SAME),
    ("TCP/*", "DATALOADER.TEST.BATCH_SIZE", 500, 100, COMPUTES_THE_SAME),
    ("KgCoOp/*", "TRAINER.KGCOOP.N_CTX", NOT_SET, 4, SCRIPTS),
    ("KgCoOp/*", "TRAINER.KGCOOP.W", NOT_SET, 8.0, SCRIPTS),
    ("ProGrad/*", "TRAINER.PROGRAD.N_CTX", NOT_SET, 16, SCRIPTS),
    ("ProGrad/*", "TRAINER.PROGRAD.LAMBDA", NOT_SET, 1.0, SCRIPTS),
    ("TCP/*", "TRAINER.TCP.N_CTX", NOT_SET, 4, SCRIPTS),
    ("TCP/*", "OPTIM.ADAM_EPS", NOT_SET, 1e-3, "TCP's README says to set it in the toolbox"),
    (
        "KgCoOp/*_b*",
        "OPTIM.ADAM_EPS",
        NOT_SET,
        1e-3,
        "files of TCP's repository, which uses that toolbox",
    ),
    (
        "TCP/*",
        "BY_DATASET",
        NOT_SET,
        TCP_EPOCHS,
        "TCP's train.py sets it, and its scripts load epoch 25",
    ),
    ("MMRL/vit_b16_cross_datasets.yaml", "TRAINER.MMRL.TASK", NOT_SET, "CD", SCRIPTS),
    (
        "MMRL/*",
        "BY_DATASET",
        NOT_SET,
        MMRL_WEIGHTS,
        "MMRL's train.py sets a weight for each dataset",
    ),
    ("MMRLpp/*", "DATALOADER.TEST.BATCH_SIZE", 250, 100, COMPUTES_THE_SAME),
    ("MMRLpp/vit_b16_cross_datasets.yaml", "TRAINER.MMRLPP.TASK", NOT_SET, "CD", SCRIPTS),
    *(
        (
            "MMRLpp/*",
            "BY_DATASET",
            NOT_SET,
            in_code("MMRL", "TRAINER.MMRLPP", table),
            "its code sets them",
        )
        for table in ("by_dataset", "by_target")
    ),
    ("CoPrompt/*", "BY_DATASET", NOT_SET, in_code("CoPrompt", "TRAINER."), "its code sets them"),
]

WITHOUT_DASSL = (
    "CLIPAdapter",
    "GDA",
    "LPPlusPlus",
    "TipAdapter",
    "TipAdapterF",
    "TPT",
    "CTPT",
    "ZERO",
    "MTA",
    "TDA",
    "OTPT",
    "TPS",
    "DMN",
    "BoostAdapter",
    "TransCLIP",
    "StatA",
    "EMDirichlet",
    "HardEMDirichlet",
    "ZLaP",
)
WITHOUT_DASSL += ("FineTune", "SSText", "ProKeR", "CuPL", "DCLIP", "WaffleCLIP")
OURS = {  # files that nobody published: their names, and why they are here
    "*/small.yaml": "for the small CLIP of this project",
    "*/small_cross_datasets.yaml": "for the small CLIP of this project",
    "*/*_ours.yaml": "a published method has no file for the backbone of the comparison",
    "UPT/*.yaml": "UPT's repository has no code",
    "LinearProbe/*.yaml": "the linear probe was published without Dassl",
    **{f"{name}/vit_b16*.yaml": "published without Dassl's YAML files" for name in WITHOUT_DASSL},
}


def named_here(file: str, key: str) -> str:
    """The name of a published key in a configuration of this project."""
    section = Path(file).parent.name.upper()
    group, _, last = key.rpartition(".")
    return (
        f"TRAINER.{section}.{last}"
        if group in ("TRAINER.COOP", "LOSS", *OTHERS) or key in KEYS
        else key
    )


def plain(value):
    """A value with lists for tuples and for texts such as `(224, 224)`, which yacs reads as
    tuples.
    """
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, str) and value.startswith("("):
        value = literal_eval(value)
    return list(value) if isinstance(value, tuple) else value


def published() -> dict[str, dict[str, dict]]:
    """The values of every published file of our methods: file -> repository -> values; the authors'
    first.
    """
    found: dict = {}
    for repository in REPOSITORIES:
        for file, values in FACTS[repository]["yaml"].items():
            named = {named_here(file, key): plain(value) for key, value in values.items()}
            found.setdefault(file, {})[repository] = named
    ours = {
        file: copies
        for file, copies in found.items()
        if Path(file).parent.name in trainers.methods()
    }
    for file, copies in ours.items():
        method = Path(file).parent.name
        authors = AUTHORS.get(method, method)
        ours[file] = dict(sorted(copies.items(), key=lambda item: item[0] != authors))
    return ours


PUBLISHED = published()


def settings(file: str) -> CfgNode:
    """The configuration of a run with a YAML file."""
    return setup_cfg(
        parse_arguments(["--trainer", Path(file).parent.name, "--config-file", str(CONFIGS / file)])
    )


def effective(file: str) -> tuple[dict, set[str]]:
    """All values of a run with a YAML file, and the keys that this file or its bases set."""
    set_there = CfgNode(new_allowed=True)
    set_there.merge_from_file(str(CONFIGS / file))
    tables = set_there.pop("BY_DATASET", {})
    keys = {named_here(file, key) for key in flatten(set_there)} | (
        {"BY_DATASET"} if tables else set()
    )
    values = flatten(settings(file)) | {"BY_DATASET": dict(tables)}
    return {key: plain(value) for key, value in values.items()}, keys


def differences(file: str, theirs: dict) -> dict[str, tuple]:
    """{key: (value there, value here)} of a file, for all that is set there or here."""
    values, keys = effective(file)
    pairs = {key: (theirs.get(key, NOT_SET), values.get(key, NOT_SET)) for key in {*theirs, *keys}}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b or type(a) is not type(b)}


def authors_values(file: str) -> dict:
    return next(iter(PUBLISHED[file].values()))


@pytest.mark.parametrize("file", PUBLISHED)
def test_file_has_the_published_values(file):
    rules = [
        (key, (there, here))
        for pattern, key, there, here, _ in ALLOWED
        if fnmatchcase(file, pattern)
    ]
    assert [
        pair for pair in differences(file, authors_values(file)).items() if pair not in rules
    ] == []


def test_number_of_files_and_of_values_compared():
    files = [file for file in PUBLISHED if (CONFIGS / file).is_file()]
    values = sum(len(authors_values(file)) for file in files)
    print(
        f"{len(files)} files with {values:,} published values compared, {len(ALLOWED)} allowed "
        "differences"
    )
    assert files == list(PUBLISHED)
    assert (len(files), values) == (55, 1116)


def test_every_allowed_difference_exists():
    found = {
        (file, key): pair
        for file in PUBLISHED
        for key, pair in differences(file, authors_values(file)).items()
    }
    for pattern, key, there, here, reason in ALLOWED:
        pairs = [
            pair
            for (file, name), pair in found.items()
            if fnmatchcase(file, pattern) and name == key
        ]
        assert (there, here) in pairs and reason, (pattern, key)


def test_a_file_says_that_its_copies_in_other_repositories_differ():
    for file, copies in PUBLISHED.items():
        # Which has keys of datasets of its own
        values = [copies[name] for name in copies if name != "MVLPT"]
        same = all(each == values[0] for each in values)
        assert same or "copies of this file" in head(file) or "copy of this file" in head(file), (
            file
        )


def head(file: str) -> str:
    """The comment at the top of a YAML file."""
    lines = (CONFIGS / file).read_text().splitlines()
    return "\n".join(line for line in lines[:5] if line.startswith("#"))


# Values of repositories whose files are not among the facts: their scripts, programs and YAML files
# state them.
SGD = {"OPTIM.NAME": "sgd", "OPTIM.LR_SCHEDULER": "cosine"}
DEPT = SGD | {
    "OPTIM.LR_EXP": 6.5,
    "OPTIM.MAX_EPOCH": 10,
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_CONS_LR": 1e-5,
}
DEPT_35 = DEPT | {"OPTIM.LR": 0.0035, "DATALOADER.TRAIN_X.BATCH_SIZE": 4}
MMA = SGD | {
    "OPTIM.LR": 0.0015,
    "OPTIM.MAX_EPOCH": 5,
    "OPTIM.WARMUP_EPOCH": -1,
    "TRAINER.MMA.PREC": "amp",
}
MMA |= {
    "TRAINER.MMA.ADAPTER_START": 5,
    "TRAINER.MMA.ADAPTER_END": 12,
    "TRAINER.MMA.ADAPTER_DIM": 32,
}
MMA |= {"TRAINER.MMA.ADAPTER_SCALE": 0.001}
LORA = {
    "OPTIM.NAME": "adamw",
    "OPTIM.LR": 2e-4,
    "OPTIM.WEIGHT_DECAY": 0.01,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
}
LORA |= {"INPUT.RRCROP_SCALE": (0.08, 1.0), "TRAINER.CLIPLORA.R": 2, "TRAINER.CLIPLORA.ALPHA": 1}
LORA |= {
    "TRAINER.CLIPLORA.DROPOUT_RATE": 0.25,
    "TRAINER.CLIPLORA.N_ITERS": 500,
    "TRAINER.CLIPLORA.PREC": "amp",
}
LOCOOP = SGD | {
    "OPTIM.LR": 0.002,
    "OPTIM.MAX_EPOCH": 50,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "OPTIM.WARMUP_EPOCH": 1,
}
LOCOOP |= {"TRAINER.LOCOOP.LAMBDA": 0.25, "TRAINER.LOCOOP.TOPK": 200, "TRAINER.LOCOOP.N_CTX": 16}
ON_FEATURES = {
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
}
CLAP = SGD | ON_FEATURES | {"OPTIM.LR": 0.1, "OPTIM.MAX_EPOCH": 300, "OPTIM.WEIGHT_DECAY": 0.0}
TASK_RES = ON_FEATURES | {"OPTIM.NAME": "adam", "OPTIM.WEIGHT_DECAY": 5e-4}
FIT = SGD | {"OPTIM.LR": 0.002, "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "OPTIM.WARMUP_EPOCH": 1}
FIT |= {"OPTIM.WARMUP_CONS_LR": 1e-5, "TRAINER.CLIPFIT.LAMBDA": 8.0, "TRAINER.CLIPFIT.PREC": "fp16"}
TWO_STAGE = {key: value for key, value in LORA.items() if "CLIPLORA" not in key} | {
    "TRAINER.TWOSTAGE.PEFT": "ln"
}
TWO_STAGE |= {
    "TRAINER.TWOSTAGE.N_ITERS": 300,
    "TRAINER.TWOSTAGE.FRACTION": 0.6,
    "TRAINER.TWOSTAGE.PREC": "amp",
}
SVD = TWO_STAGE | {"TRAINER.CLIPSVD.RANK": 1.0, "TRAINER.CLIPSVD.LAYERS": "all", "OPTIM.LR": 5e-4}
SVD = {key: value for key, value in SVD.items() if "TWOSTAGE" not in key} | {
    "TRAINER.CLIPSVD.N_ITERS": 200
}
PROLIP = {"OPTIM.NAME": "adam", "OPTIM.LR": 1e-5, "OPTIM.ADAM_EPS": 1e-4, "OPTIM.WEIGHT_DECAY": 0.0}
PROLIP |= {"INPUT.RRCROP_SCALE": (0.5, 1.0)}
RLA = PROLIP | {"MODEL.BACKBONE.NAME": "RN50"}
RLA |= {
    f"TRAINER.RLA.{key}": value
    for key, value in {"AUGMENT_EPOCH": 300, "STEPS": 300, "LAMBDA": "1/N"}.items()
}
PROLIP |= {
    key.replace("RLA", "PROLIP"): value for key, value in RLA.items() if key.startswith("TRAINER")
}
STATED = {
    "TwoStage/vit_b16.yaml": TWO_STAGE,
    "CLIPFit/vit_b16_ep100_ctxv1.yaml": FIT | {"OPTIM.MAX_EPOCH": 100},
    "CLIPFit/vit_b16_ep10_ctxv1.yaml": FIT | {"OPTIM.MAX_EPOCH": 10},
    "CLIPSVD/vit_b16_few_shot.yaml": SVD,
    "CLIPSVD/vit_b16_cross_datasets.yaml": SVD,
    "CLIPSVD/vit_b16_base2new.yaml": SVD
    | {"OPTIM.LR": 4e-4, "OPTIM.MAX_EPOCH": 20, "TRAINER.CLIPSVD.N_ITERS": 0},
    "ProLIP/vit_b16.yaml": PROLIP,
    "ProLIP/rn50.yaml": PROLIP | {"MODEL.BACKBONE.NAME": "RN50"},
    **{
        f"RLA/RLA_lr1e-{power}_lambda_1_N.yaml": RLA | {"OPTIM.LR": 10.0**-power}
        for power in (2, 3, 4, 5)
    },
    "ZSLP/SGD_lr1e-1_B256_ep300.yaml": CLAP,
    "CLAP/SGD_lr1e-1_B256_ep300.yaml": CLAP,
    **{
        f"TaskRes/{name}.yaml": TASK_RES
        | {
            "MODEL.BACKBONE.NAME": backbone,
            "OPTIM.LR": rate,
            "OPTIM.MAX_EPOCH": 100 if "ep100" in name else 200,
        }
        for name, backbone, rate in [
            ("adam_lr2e-3_B256_ep100", "RN50", 0.002),
            ("adam_lr2e-3_B256_ep200", "RN50", 0.002),
            ("adam_lr2e-4_B256_ep100", "RN50", 0.0002),
            ("adam_lr2e-4_B256_ep200", "RN50", 0.0002),
            ("adam_lr2e-4_B256_ep200_RN101", "RN101", 0.0002),
            ("adam_lr2e-4_B256_ep200_RN50x16", "RN50x16", 0.0002),
            ("adam_lr2e-4_B256_ep200_ViT16", "ViT-B/16", 0.0002),
            ("adam_lr2e-4_B256_ep200_ViT32", "ViT-B/32", 0.0002),
            ("generalization_rn50", "RN50", 0.0002),
            ("generalization_rn101", "RN101", 0.0002),
            ("generalization_vit16", "ViT-B/16", 0.0002),
            ("generalization_vit32", "ViT-B/32", 0.0002),
        ]
    },
    "CLIPLoRA/vit_b16.yaml": LORA,
    "MMA/vit_b16_ep5.yaml": MMA | {"DATALOADER.TRAIN_X.BATCH_SIZE": 16},
    "MMA/vit_b16_ep5_imnet.yaml": MMA | {"DATALOADER.TRAIN_X.BATCH_SIZE": 128},
    "LoCoOp/vit_b16_ep50.yaml": LOCOOP,
    "LoCoOp/rn50_ep50.yaml": LOCOOP | {"MODEL.BACKBONE.NAME": "RN50"},
    "DePT+CoOp/vit_b16_ep10_bs4_lr35.yaml": DEPT_35
    | {"TRAINER.COOP.N_CTX": 16, "TRAINER.COOP.WEIGHT": 0.7},
    "DePT+KgCoOp/vit_b16_ep10_ctxv1_bs4_lr35.yaml": DEPT_35 | {"TRAINER.KGCOOP.W": 2.0},
    "DePT+MaPLe/vit_b16_c2_ep10_batch4_2ctx.yaml": DEPT_35 | {"TRAINER.MAPLE.PROMPT_DEPTH": 9},
    "DePT+CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml": DEPT
    | {"OPTIM.LR": 0.002, "DATALOADER.TRAIN_X.BATCH_SIZE": 1},
}


@pytest.mark.parametrize("file", STATED)
def test_values_of_other_repositories(file):
    values = flatten(settings(file))
    for key, value in STATED[file].items():
        assert values[key] == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.parametrize("method", ["KgCoOp", "DePT+KgCoOp"])
def test_kgcoop_files_of_depts_repository_are_read(method, tmp_path):
    """They have a key that KgCoOp does not read."""
    (file := tmp_path / "published.yaml").write_text(
        "TRAINER:\n  COOP:\n    ALPHA: 1.0\n    W: 2.0\n"
    )
    cfg = setup_cfg(parse_arguments(["--trainer", method, "--config-file", str(file)]))
    assert trainers.methods()[method].settings_of(cfg).W == 2


def test_settings_of_coprompts_file_outside_of_its_section_are_read(tmp_path):
    (file := tmp_path / "published.yaml").write_text(
        "TRAINER:\n  CoPrompt:\n    N_CTX: 4\n  W: 8.0\n  DISTILL: mse\n"
    )
    cfg = setup_cfg(parse_arguments(["--trainer", "CoPrompt", "--config-file", str(file)]))
    settings = trainers.methods()["CoPrompt"].settings_of(cfg)
    assert (settings.N_CTX, settings.W, settings.DISTILL) == (4, 8.0, "mse")
    file.write_text("TRAINER: {W: heavy}\n")
    with one_line(str(file), "TRAINER.COPROMPT.W is 'heavy'", "give a number"):
        setup_cfg(parse_arguments(["--trainer", "CoPrompt", "--config-file", str(file)]))


def test_other_files_are_ours_by_their_names():
    files = {str(file.relative_to(CONFIGS)) for file in CONFIGS.glob("*/*.yaml")} - set(STATED)
    assert set(PUBLISHED) <= files
    for file in files - set(PUBLISHED):
        assert any(fnmatchcase(file, pattern) for pattern in OURS), (
            f"{file}: is it published? name it ..._ours.yaml"
        )
        assert "small" in file or "Ours" in head(file) or file.partition("/")[0] in WITHOUT_DASSL, (
            file
        )
    for pattern, reason in OURS.items():
        assert reason and any(fnmatchcase(file, pattern) for file in files - set(PUBLISHED)), (
            pattern
        )


LATE = ("TRAINER.PROMPTSRC.GPA_MEAN", "45", "TRAINER.PROMPTSRC.GPA_STD", "5")


@pytest.mark.parametrize(("protocol", "topk"), [("base2new", "0.2"), ("cross_dataset", "")])
def test_locoops_topk_is_a_fifth_of_imagenets_classes(protocol, topk):
    """The YAML file has 200."""
    assert "".join(recipe("LoCoOp", protocol, "imagenet").settings[1:]) == topk


@pytest.mark.parametrize(
    ("method", "dataset", "published"),
    [  # the YAML files, or other settings, for 1, 2, 4, 8 and 16 images of a class
        ("TaskRes", "dtd", ["adam_lr2e-4_B256_ep200_ViT16"] * 5),
        ("CoOp", "imagenet", ["vit_b16_ep50"] * 5),
        ("CoOp", "dtd", ["vit_b16_ep50", "vit_b16_ep100", "vit_b16_ep100", "vit_b16", "vit_b16"]),
        ("UPT", "dtd", ["vit_b16"] * 5),
        ("PromptSRC", "ucf101", [()] * 5),
        ("PromptSRC", "eurosat", [LATE] * 5),
    ],
)
def test_few_shot_settings_are_those_published_for_the_images_and_the_dataset(
    method, dataset, published
):
    found = [recipe(method, "few_shot", dataset, shots) for shots in (1, 2, 4, 8, 16)]
    assert published in ([each.cfg for each in found], [tuple(each.settings) for each in found])
