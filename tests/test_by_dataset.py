"""BY_DATASET in a method's YAML file: values for single datasets."""

import pytest
import yaml

from common.start import ROOT
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg

MPL = {"_BASE_": str(ROOT / "configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml"), "OPTIM": {"LR": 0.5}}
VALUES = {"OPTIM.LR": 0.25, "TRAINER": {"MPL": {"N_ADD_OP": [2] * 8}}, "OPTIM.NAME": "adamw"}


@pytest.fixture
def configured(tmp_path):
    """`configured(table, *options)` -> the configuration of a run on EuroSAT with this table of base2new."""

    def configured(table, *options):
        file = tmp_path / "method.yaml"
        file.write_text(yaml.safe_dump(MPL | {"BY_DATASET": table}))
        dataset = ROOT / "configs/datasets/eurosat.yaml"
        argv = ["--trainer", "MPL", "--config-file", file, "--dataset-config-file", dataset, *options]
        return setup_cfg(parse_arguments([str(item) for item in argv]))

    return configured


def test_values_of_the_dataset_replace_those_of_the_file(configured):
    table = {"base2new": {"EuroSAT": VALUES, "OxfordPets": {"OPTIM.LR": 3.0}}}
    for classes in ("base", "new"):
        cfg = configured(table, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.TRAINER.MPL.N_ADD_OP) == (0.25, "adamw", [2] * 8)
        assert cfg.BY_DATASET == {"OPTIM.LR": 0.25, "TRAINER.MPL.N_ADD_OP": [2] * 8, "OPTIM.NAME": "adamw"}
    for table, classes in (({"OxfordPets": VALUES}, "base"), ({"EuroSAT": VALUES}, "all")):
        cfg = configured({"base2new": table}, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert (cfg.OPTIM.LR, cfg.BY_DATASET) == (0.5, {})


def test_values_for_all_runs_and_those_for_halves_of_the_classes(configured):
    table = {"EuroSAT": {"OPTIM.LR": 0.25, "OPTIM.NAME": "adam"}, "base2new": {"EuroSAT": {"OPTIM.LR": 0.125}}}
    for classes, rate in (("all", 0.25), ("base", 0.125), ("new", 0.125)):
        cfg = configured(table, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert cfg.OPTIM.NAME == "adam" and rate == cfg.OPTIM.LR


def test_command_line_goes_before_the_values_of_the_dataset(configured):
    table = {"base2new": {"EuroSAT": VALUES | {"MODEL.BACKBONE.NAME": "small", "SEED": 5}}}
    options = ["--backbone", "RN50", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.LR", "0.75"]
    cfg = configured(table, *options)
    assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.MODEL.BACKBONE.NAME, cfg.SEED) == (0.75, "adamw", "RN50", 5)
    assert set(cfg.BY_DATASET) == {"TRAINER.MPL.N_ADD_OP", "OPTIM.NAME", "SEED"}


def test_run_logs_them_and_its_config_file_repeats_it(run, tmp_path):
    file, base = tmp_path / "method.yaml", ("DATASET.SUBSAMPLE_CLASSES", "base")
    file.write_text(yaml.safe_dump(MPL | {"BY_DATASET": {"base2new": {"EuroSAT": {"OPTIM.LR": 0.25}}}}))

    def started(name, config, *overrides):
        folder = run(name, *base, *overrides, options=["--config-file", config, "--no-train"])
        return (folder / "log.txt").read_text(), yaml.safe_load((folder / "config.yaml").read_text())["OPTIM"]["LR"]

    line = "The YAML file sets for EuroSAT (BY_DATASET): OPTIM.LR 0.25\n"
    log, rate = started("out", file)
    assert line in log and rate == 0.25
    log, rate = started("given", file, "OPTIM.LR", 0.75)
    assert line not in log and rate == 0.75
    assert started("again", tmp_path / "given/config.yaml")[1] == 0.75
