"""Every published script of a method that is here exists under its path and starts the published
runs.

The facts are in published_settings.json: positional arguments, variables, loops, and the options of
train.py. The tests expand them to runs, and compare these with what a dry run of our script prints:
method, YAML file, dataset, images of each class, seed, classes, the epoch to load, and the settings
that the run would have.
"""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from drawn import cfg_from
from marks import of_json

from common.start import ROOT
from runs import config
from runs.config import flatten
from studies.reproduce import read_arguments, study_of
from studies.scripts import read_table

FACTS = of_json(ROOT / "tests/helpers/published_settings.json")
# Positional arguments of the tests
VALUES = {
    "DATASET": "eurosat",
    "SEED": "3",
    "CFG": "rn50_ep50",
    "CTP": "middle",
    "NCTX": "4",
    "SHOTS": "2",
}
VALUES |= {
    "CSC": "True",
    "WEIGHT": "8.0",
    "MAX_EPOCH": "7",
    "WEIGHTSPATH": "prompts",
    "DATA": "my data",
}
VALUES |= {
    "EXP_NAME": "mine",
    "LAMBDA": "0.5",
    "TOPK": "3",
    "T": "0.5",
    "MODEL_DIR": "trained",
    "LOADEP": "4",
    "LOADER": "4",
    "RATE": "0.5",
    "TYPE": "sym",
    "CLASS": "10",
}
# Published names of trainers, and of their folders
NAMES = {
    "MultiModalAdapter": "MMA",
    "MultiModalAdapterPP": "MMApp",
    "CoOp_ATP": "ATPrompt+CoOp",
    "trainers": "CoPrompt",
}
# Where a repository has no file of the name above, or starts from words, for which CSC is refused
OF_ANOTHER = {
    ("MMA", "CFG"): "vit_b16_ep5",
    ("MMApp", "CFG"): "b2n_cupl",
    ("ProGrad", "CSC"): "False",
}
SCRIPT_FACTS = [
    (repository, path)
    for repository, facts in FACTS.items()
    if repository != "what"
    for path in facts["scripts"]
]
# Where our script differs from a published one, and why.
OTHER_REPOSITORY = {  # (repository, path): the repository whose script of the same path it is here
    # The method's own repository wins
    (
        "PromptSRC",
        f"scripts/independent-vlp/{name}_ivlp.sh",
    ): "MaPLe"
    for name in ("base2new_train", "base2new_test", "reproduce")
}
# The path is KgCoOp's, with arguments
MOVED = {("TCP", "scripts/base2new_train.sh"): "scripts/tcp/base2new_train.sh"} | {
    # Its fourth argument, always MultiModalAdapterPP, is no argument here
    ("MMApp", f"scripts/{name}.sh"): f"scripts/mmapp/{name}.sh"
    for name in ("base2new_train", "base2new_test", "xd_train", "xd_test")
}
OTHER_YAML = {  # the published script names a file that its repository does not have
    (
        "PromptSRC",
        "vit_b16_c2_ep5_batch4_4+4ctx_cross_datasets",
    ): "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
    # Chosen in the file by the user; its test script has this one
    (
        "KgCoOp",
        "${CFG}",
    ): "vit_b16_ep100_ctxv1",
}
ADDED = {  # settings that only our runs have
    "TRAIN.CHECKPOINT_FREQ": "keeps the checkpoint that the published test loads",
    "TRAINER.PROMPTSRC.GPA_MEAN": "PromptSRC's documentation asks for other values on "
    "five datasets",
    "TRAINER.PROMPTSRC.GPA_STD": "PromptSRC's documentation asks for other values on five datasets",
}
# LoCoOp's options
LOCOOP = {
    "--lambda_value": "TRAINER.LOCOOP.LAMBDA",
    "--topk": "TRAINER.LOCOOP.TOPK",
    "--T": "TEST.OOD_T",
}
DROPPED = {"TASK": "MMRL's checkpoints say here which classes were trained"}
RENAMED = {"TRAINER.ATPROMPT.N_ATT1": "TRAINER.COOP.N_ATT"}  # of a plug-in: of its base method
PLACES = {"OUTPUT_DIR", "DATASET.ROOT", "RESUME"}


def substitute(text, variables):
    """The text with $X and ${X} replaced by the script's variables, which may contain other
    variables.
    """
    for _ in range(5):
        text = re.sub(
            r"\$\{?(\w+)\}?", lambda match: str(variables.get(match[1], match[0])), str(text)
        )
    return text


def published_runs(repository, path, dataset="eurosat"):
    """The runs of a published script, each as the facts that are compared, and its settings."""
    facts = FACTS[repository]["scripts"][path]
    given = {name: value_of(repository, name) for name in facts["arguments"]}
    given |= {"DATASET": dataset} if "DATASET" in given else {}
    loops = {name: values for name, values in facts["loops"].items() if name not in given}
    for values in product(*loops.values()):
        variables = facts["variables"] | given | dict(zip(loops, values, strict=True))
        variables |= facts.get("by_dataset", {}).get(variables["DATASET"], {})
        for call in facts["runs"]:
            options = {key: substitute(value, variables) for key, value in call["options"].items()}
            settings = {
                RENAMED.get(key, key): substitute(value, variables)
                for key, value in call["settings"].items()
            }
            yield run_of(
                repository, options, {key: settings[key] for key in settings if key not in DROPPED}
            )


def value_of(repository, name):
    return OF_ANOTHER.get((repository, name), VALUES[name])


def run_of(repository, options, settings):
    method, cfg = options["--config-file"].removesuffix(".yaml").split("/")[-2:]
    method = NAMES.get(method, method)
    tests = "--eval-only" in options
    settings |= {LOCOOP[key]: value for key, value in options.items() if key in LOCOOP}
    trainer = NAMES.get(options["--trainer"], options["--trainer"])
    if trainer.startswith("ATPrompt+"):  # there it reads its base method's file
        method = trainer
    facts = {
        "method": trainer,
        "yaml": f"{method}/{OTHER_YAML.get((repository, cfg), cfg)}",
        "dataset": Path(options["--dataset-config-file"]).stem,
        "seed": options.get("--seed"),
        "classes": settings.get("DATASET.SUBSAMPLE_CLASSES", "all"),
        "tests": tests,
        "epoch": options.get("--load-epoch"),
        "shots": None
        if tests
        else settings.get("DATASET.NUM_SHOTS"),  # a test does not depend on it
    }
    return facts, settings


def train_calls(call):
    """The calls of train.py of a program that a script starts; the prompts of tests are made up."""
    if call[0] == "train.py":
        return [call]
    args = read_arguments(call[1:])
    for seed in args.seeds:
        place = {"cross_dataset": f"seed{seed}", "few_shot": f"{args.shots}shot/seed{seed}"}.get(
            args.protocol
        )
        folder = Path(args.checkpoints, place or f"base/seed{seed}", "prompts")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.pth.tar-1").touch()
    return [["train.py", *run.arguments] for run in study_of(args).runs()]


def our_run(repository, call):
    words = iter(call[1:])
    options = {}
    settings = {}
    for word in words:
        if word in ("--skip-finished", "--eval-only"):
            options[word] = True
        else:
            (options if word.startswith("--") else settings)[word] = next(words)
    return run_of(repository, options, settings)


def effective_there(repository, facts, settings):
    """The settings of a published run: without our BY_DATASET, with the values that the
    repository's code sets.
    """
    across = facts["yaml"] == "MMRLpp/vit_b16_cross_datasets"
    by_dataset = (
        FACTS[repository].get("by_target" if across else "by_dataset", {}).get(facts["dataset"], {})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "merge_by_dataset", lambda cfg, given: None)
        return effective(facts, {key: str(value) for key, value in (by_dataset | settings).items()})


def effective(facts, settings):
    """The settings of a run, without folders."""
    argv = ["--trainer", facts["method"], "--seed", facts["seed"] or "1"]
    argv += ["--dataset-config-file", f"{ROOT}/configs/datasets/{facts['dataset']}.yaml"]
    argv += ["--config-file", f"{ROOT}/configs/trainers/{facts['yaml']}.yaml"]
    if facts["method"] in ("HiCroPL", "MMApp"):  # in the published repository's own files
        settings = settings | {"DATASET.SENTENCES": f"{ROOT}/configs/sentences/EuroSAT.json"}
    cfg = flatten(cfg_from(*argv, *(item for pair in settings.items() for item in pair)))
    return {
        key: value
        for key, value in cfg.items()
        if key not in PLACES and not key.startswith("BY_DATASET.")
    }


def script_of(repository, path):
    return MOVED.get((repository, path), path).removeprefix("scripts/").removesuffix(".sh")


@pytest.mark.parametrize(
    ("repository", "path"), SCRIPT_FACTS, ids=lambda value: value.removeprefix("scripts/")
)
def test_script_starts_the_published_runs(repository, path, script):
    positions = FACTS[repository]["scripts"][path]["arguments"]
    # Whose code sets values for single datasets
    by_dataset = "DATASET" in positions and repository in (
        "CoPrompt",
        "MMRL",
        "TCP",
    )
    for dataset in ("eurosat", "imagenet", "sun397") if by_dataset else ("eurosat",):
        arguments = [
            dataset if name == "DATASET" else value_of(repository, name) for name in positions
        ]
        ended, calls = script(f"{script_of(repository, path)}.sh", *arguments, BACKBONE="")
        assert ended.returncode == 0, ended.stderr
        source = OTHER_REPOSITORY.get((repository, path), repository)
        theirs = sorted(distinct(published_runs(source, path, dataset)), key=str)
        ours = [our_run(repository, train) for call in calls for train in train_calls(call)]
        ours.sort(key=str)
        assert [facts for facts, _ in ours] == [facts for facts, _ in theirs]
        for mine, published in zip(ours, theirs, strict=True):
            # No such file is published: dev_train.sh cannot run anywhere
            if "_dev" in published[0]["yaml"]:
                continue
            here = effective(*mine)
            there = effective_there(source, *published)
            different = {
                key for key in here.keys() | there.keys() if here.get(key) != there.get(key)
            }
            may = ADDED.keys() | ({"DATASET.NUM_SHOTS"} if published[0]["tests"] else set())
            assert different <= may, {
                key: (here.get(key), there.get(key)) for key in different - may
            }


def distinct(runs):
    """Runs without the second call of scripts that have one for each case of an `if`: the facts
    list both.
    """
    found = {}
    for facts, settings in runs:
        found.setdefault(json.dumps(facts), (facts, settings))
    return found.values()


def test_every_published_script_is_compared():
    compared = {script_of(repository, path) for repository, path in SCRIPT_FACTS}
    claimed = {name for name, script in read_table().items() if script.repository}
    assert compared == claimed
    assert len(SCRIPT_FACTS) == 143 and len(compared) == 86
