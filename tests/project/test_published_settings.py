"""The YAML files in configs/trainers have the values that are published under their names, and set
nothing besides.

`published_settings.json` has the values of the published files, `stated_settings.yaml` what differs
and why, and what repositories state elsewhere.
"""

from ast import literal_eval
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from dassl.config import CfgNode
from drawn import cfg_from
from marks import of_json, one_line

import trainers
from common.start import ROOT
from configs.files import known_datasets, read_yaml
from configs.recipes import recipe
from runs.config import flatten

FACTS = of_json(ROOT / "tests/helpers/published_settings.json")
REPOSITORIES = [name for name in FACTS if name != "what"]
# Repositories that have not the name of the method
AUTHORS = {
    "CoCoOp": "CoOp",
    "VPT": "MaPLe",
    "IVLP": "MaPLe",
}
CONFIGS = ROOT / "configs/trainers"
SENTENCES = ROOT / "configs/sentences/EuroSAT.json"
# Published names
OTHERS = ("TRAINER.MMRLpp", "TRAINER.CoPrompt")
KEYS = ("TRAINER.W", "TRAINER.DISTILL")
NOT_SET = "not set"
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


TABLES = yaml.safe_load(Path(__file__).with_name("stated_settings.yaml").read_text())
STATED = TABLES["stated"]
ALLOWED = [
    *TABLES["allowed"],
    *(
        ["MMRLpp/*", "BY_DATASET", NOT_SET, in_code("MMRL", "TRAINER.MMRLPP", table), "its code"]
        for table in ("by_dataset", "by_target")
    ),
    ["CoPrompt/*", "BY_DATASET", NOT_SET, in_code("CoPrompt", "TRAINER."), "its code"],
]
OURS = TABLES["ours"] | {
    f"{name}/vit_b16*.yaml": "published without Dassl's YAML files"
    for name in TABLES["without_dassl"]
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
    method = Path(file).parent.name
    given = ["DATASET.SENTENCES", str(SENTENCES)] if method in ("HiCroPL", "MMApp") else []
    return cfg_from("--trainer", method, "--config-file", str(CONFIGS / file), *given)


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


def test_a_file_warns_about_different_copies_in_other_repositories():
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


@pytest.mark.parametrize("file", STATED)
def test_values_of_other_repositories(file):
    values = flatten(settings(file))
    for key, value in STATED[file].items():
        assert plain(values[key]) == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize("method", ["KgCoOp", "DePT+KgCoOp"])
def test_kgcoop_files_of_depts_repository_are_read(method, tmp_path):
    """They have a key that KgCoOp does not read."""
    (file := tmp_path / "published.yaml").write_text(
        "TRAINER:\n  COOP:\n    ALPHA: 1.0\n    W: 2.0\n"
    )
    cfg = cfg_from("--trainer", method, "--config-file", str(file))
    assert trainers.methods()[method].settings_of(cfg).W == 2


def test_settings_of_coprompts_file_outside_of_its_section_are_read(tmp_path):
    (file := tmp_path / "published.yaml").write_text(
        "TRAINER:\n  CoPrompt:\n    N_CTX: 4\n  W: 8.0\n  DISTILL: mse\n"
    )
    cfg = cfg_from("--trainer", "CoPrompt", "--config-file", str(file))
    settings = trainers.methods()["CoPrompt"].settings_of(cfg)
    assert (settings.N_CTX, settings.W, settings.DISTILL) == (4, 8.0, "mse")
    file.write_text("TRAINER: {W: heavy}\n")
    with one_line(str(file), "TRAINER.COPROMPT.W is 'heavy'", "give a number"):
        cfg_from("--trainer", "CoPrompt", "--config-file", str(file))


def test_other_files_are_ours_by_their_names():
    files = {str(file.relative_to(CONFIGS)) for file in CONFIGS.glob("*/*.yaml")} - set(STATED)
    assert set(PUBLISHED) <= files
    for file in files - set(PUBLISHED):
        assert any(fnmatchcase(file, pattern) for pattern in OURS), (
            f"{file}: is it published? name it ..._ours.yaml"
        )
        assert (
            "small" in file
            or "Ours" in head(file)
            or file.partition("/")[0] in TABLES["without_dassl"]
        ), file
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
