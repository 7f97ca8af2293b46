"""Study files, their runs, and the commands of tools/study.py."""

import json
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml
from drawn import cfg_from
from finished import InThisProcess, choice, finish
from marks import of_json, one_line, to_json

from common.results import read_results
from common.start import ROOT
from common.version import source
from runs.results import versions
from studies import command as study_command
from studies import plan
from studies import run as execution
from studies.plan import load
from trainers import methods

BASE2NEW, SMALL = (
    yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())
    for name in ("small", "small_cross_datasets")
)
SMALL |= {"protocols": ["base2new", "cross_dataset"], "datasets": BASE2NEW["datasets"]}  # both


@pytest.fixture
def write(tmp_path):
    """`write(key=value, ...)` -> the two small studies together, with some settings changed; None
    is the default.
    """

    def write(**settings):
        file = tmp_path / "study.yaml"
        file.write_text(
            yaml.safe_dump(SMALL | {"output": str(tmp_path)} | settings, sort_keys=False)
        )
        return file

    return write


def variant(**settings):
    """A study's trainers: one, of MPL."""
    return {"trainers": {"x": {"trainer": "MPL", "config": "small"} | settings}}


REFUSED = yaml.safe_load(Path(__file__).with_name("refused_studies.yaml").read_text())


def test_trainers_may_be_a_list(write):
    settings = {
        "trainers": ["MPL", {"CoOp": "small", "TCP": {"config": "small"}}],
        "backbone": "small",
    }
    variants = load(write(**settings)).variants
    assert [(variant.name, variant.method, variant.cfg) for variant in variants] == [
        ("MPL", "MPL", ""),
        ("CoOp", "CoOp", "small"),
        ("TCP", "TCP", "small"),
    ]


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_study_has_a_one_line_error(write, message):
    file = write(**REFUSED[message])
    with one_line(message) as caught:
        load(file)
    assert str(caught.value).count(str(file)) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("trainers/MPL/mine.yaml", "TEST: {NO_TEST: True}"),
        ("trainers/MPL/mine.yaml", "BY_DATASET: {base2new: {SmallLand: {TEST: {NO_TEST: True}}}}"),
        ("datasets/small_land.yaml", "{DATASET: {NAME: SmallLand}, TEST: {NO_TEST: True}}"),
    ],
)
def test_yaml_file_without_a_test_is_refused(file, content, write, tmp_path, monkeypatch):
    """The study never ended: a run without a test is never finished. It has small_land as its last
    dataset.
    """
    copy = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr("configs.files.CONFIGS", copy)
    monkeypatch.setattr(plan, "CONFIGS", copy)
    shutil.copy(copy / "trainers/MPL/small.yaml", copy / "trainers/MPL/mine.yaml")
    (copy / file).write_text(content)
    with one_line("TEST.NO_TEST is True"):
        load(
            write(
                **variant(config="mine"),
                protocols="base2new",
                datasets=["small_counts", "small_land"],
            )
        )


@pytest.mark.slow
def test_runs_have_the_folders_of_the_scripts_and_tests_use_the_prompts_of_their_sequence(
    write, tmp_path
):
    sequences = load(write()).sequences
    folders = {str(run.folder.relative_to(tmp_path)) for sequence in sequences for run in sequence}
    assert folders >= {
        "base2new/train_base/small_land/shots_16/MPL/small/seed1",
        "base2new/test_new/small_land/shots_16/ZeroshotCLIP/small/seed3",
        "crossdataset/small_source/CoCoOp/small_cross_datasets_16shots/seed2",
        "crossdataset/evaluation/small_source_outline/VPT/small_cross_datasets_16shots/seed2",
    }
    assert len(folders) == 19 * 3 * (5 * 2 + 8)  # 18 methods, one of them in two forms
    for trained, *tests in sequences:
        assert ("--eval-only" in trained.arguments) == (trained.variant.name == "ZeroshotCLIP")
        for test in tests:
            assert test.option("--model-dir") == str(trained.folder)
            assert (test.variant, test.seed) == (trained.variant, trained.seed)


def test_union_and_near_ood_are_runs_of_the_study(write, tmp_path):
    file = write(
        trainers={"CoOp": "small"},
        protocols="base2new",
        datasets="small_land",
        union=True,
        ood="new",
        calibrate=True,
    )
    runs = load(file).sequences[0]
    base, new, everything = runs
    assert [run.classes for run in runs] == ["base", "new", "all"]
    assert base.option("--ood") == "new"
    assert {run.option("TEST.CALIBRATE") for run in runs} == {"True"}
    assert "--ood" not in new.arguments and "--ood" not in everything.arguments
    assert everything.folder == tmp_path / "base2new/test_all/small_land/shots_16/CoOp/small/seed1"


def test_overrides_also_for_one_dataset_have_their_own_folder(write):
    own = {"overrides": {"OPTIM.LR": 0.1}, "datasets": {"small_land": {"OPTIM.LR": 0.2}}}
    trainers = {"x 1": {"trainer": "CoOp", "config": "small"} | own}
    for (run,) in load(write(trainers=trainers, protocols="few_shot")).sequences:
        rate = cfg_from(*run.arguments).OPTIM.LR
        assert rate == (0.2 if run.dataset == "small_land" else 0.1)
        assert run.folder.match(f"{run.dataset}/CoOp/x_1_16shots/seed{run.seed}")


def test_a_method_over_another_one_follows_its_training(write, tmp_path):
    trainers = ["TransCLIP+CoOp", {"CoOp": "small"}, "TransCLIP", {"StatA+CoOp": "small"}]
    study = load(write(trainers=trainers, protocols=["base2new"], seeds=[1]))
    of_coop, alone = study.sequences[:2]
    names = [run.variant.name for run in of_coop]
    assert names == 2 * ["CoOp"] + 2 * ["TransCLIP+CoOp"] + 2 * ["StatA+CoOp"]
    assert {run.variant.name for run in alone} == {"TransCLIP"}
    for run in of_coop[2:]:
        key = f"TRAINER.{run.variant.method.upper()}.OVER"
        assert run.option(key) == str(of_coop[0].folder)
        assert run.option("--trainer") == run.variant.method and not run.trains
        assert run.folder.parent.name == run.variant.name
    for trainers in (["TransCLIP+CoOp"], ["TransCLIP+TDA", "TDA"]):
        with one_line("TransCLIP+", "which is not a trainer that learns here: add it"):
            load(write(trainers=trainers), settings=False)


def test_text_of_a_study_is_a_number_where_a_number_is_wanted(write):
    """'2024' was taken for a number, and KgCoOp's published name of its settings was unknown."""
    keys = {"TRAINER.COOP.CTX_INIT": ["2024", "a photo"], "OPTIM.LR": ["0.1", 1e-3]}
    own = {
        "config": "small",
        "overrides": {"TRAINER.COOP.PREC": "fp32"},
        "datasets": {"small_land": {"CACHE": "7"}},
    }
    study = load(
        write(trainers={"KgCoOp": own}, protocols="few_shot", choose={"keys": keys, "by": "oracle"})
    )
    run = next(run for run in study.trials() if run.dataset == "small_land")
    cfg = cfg_from(*run.arguments)
    assert (cfg.TRAINER.KGCOOP.CTX_INIT, cfg.OPTIM.LR, cfg.CACHE) == ("2024", 0.1, "7")
    run = load(write(trainers={"CoOp": "small"}, protocols="few_shot", cache="7")).runs()[0]
    assert cfg_from(*run.arguments).CACHE == "7"


def test_tests_on_targets_have_the_settings_of_the_source(write):
    """Its prompts may have another shape, its images have other texts. Keys without a value have
    the default.
    """
    source = {"DATASET.TEMPLATE": "a drawing of a {}.", "TRAINER.COOP.N_CTX": 8, "OPTIM.LR": 0.1}
    datasets = {"small_source": source, "small_land": {"OPTIM.LR": 0.2}}
    empty = dict.fromkeys(("trainer", "config", "cross_dataset", "overrides", "datasets", "choose"))
    study = load(write(trainers={"CoOp": empty | {"datasets": datasets}, "MPL": empty}))
    for run in study.runs():
        if (run.protocol, run.variant.name) == ("cross_dataset", "CoOp"):
            cfg = cfg_from(*run.arguments)
            rate = 0.2 if run.dataset == "small_land" else 0.1
            assert cfg.TRAINER.COOP.N_CTX == 8 and rate == cfg.OPTIM.LR
            assert bool(cfg.DATASET.TEMPLATE) == (run.dataset == "small_source")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem
)
def test_included_study_is_valid(file):
    """Each kind of its runs has a configuration, and each schedule of vision prompts is
    possible.
    """
    seen = {}
    study = load(file)
    for run in (*study.trials(), *study.runs()):
        seen.setdefault((run.protocol, run.variant.name), run)
    assert len(seen) >= 3
    for run in seen.values():
        cfg = cfg_from(*run.arguments)
        method = methods()[run.variant.method]
        lengths = method.vision_lengths(method.settings_of(cfg), 12)
        assert (run.variant.method == "MPL") <= (lengths is not None and len(lengths) == 12)


# The commands


@pytest.fixture
def one_run(write):
    """`one_run(name)` -> the file of a study of two runs of MPL under a name, and the first one,
    which is finished.
    """

    def one_run(name="MPL"):
        mpl = {"trainer": "MPL", "config": "small"}
        file = write(trainers={name: mpl}, datasets=["small_land"], protocols="base2new", seeds=[1])
        run = load(file).sequences[0][0]
        finish(run, 50.0)
        return file, run

    return one_run


@pytest.fixture
def refused(command):
    """`refused(name, file)`: the line of a command that ends with an error of its user."""
    return lambda name, file: command(study_command, name, file).error


def test_status_and_tables_of_a_study_in_progress(one_run, tmp_path, capsys):
    file = str(one_run("=1+1")[0])
    study_command.main(["tables", file])
    made = tmp_path / "studies/study"
    # No formula
    written = {
        "md": "| =1+1 | 50.00 |",
        "tex": "50.00",
        "csv": "base2new,base,'=1+1,small_land,50.0",
    }
    for kind, text in written.items():
        assert text in (made / f"tables.{kind}").read_text()
    assert of_json(made / "tables.json")["runs"][0]["accuracy"] == 50.0
    capsys.readouterr()
    study_command.main(["status", file])
    status = "1 of 2 runs are done, 0 are running, 0 have failed, 1 are left, about 00:03 to go"
    assert status in capsys.readouterr().out
    other = tmp_path / "other.yaml"
    other.write_text(Path(file).read_text().replace("small_land", "small_counts"))
    # The other study has no run yet: those of this one count
    for planned, left in ((file, 1), (other, 2)):
        study_command.main(["plan", str(planned)])
        printed = capsys.readouterr().out
        assert f"2 runs, 1 of which train; {left} are left" in printed
        assert re.search(r"about 00:\d\d of one process and 0\.00 GB, as 1 finished runs", printed)


@pytest.mark.parametrize("kind", ["control characters", "link"])
def test_status_shows_an_error_in_one_line_and_follows_no_link(kind, one_run, capsys):
    file, run = one_run()
    (run.folder / "results.json").rename(error := run.folder / "error.txt")
    if kind == "link":
        error.unlink()
        error.symlink_to("/dev/zero")
    else:
        error.write_text("OSError: \x1b[31m bad\nline\n")
    study_command.main(["status", str(file)])
    _, failed = capsys.readouterr().out.splitlines()
    shown = {"control characters": "OSError: \\x1b[31m bad line", "link": "is a link"}[kind]
    assert failed.startswith(f"failed: {run.folder}: ") and shown in failed


def test_a_study_resumed_by_another_version_says_so(one_run, command, monkeypatch):
    file, run = one_run()
    monkeypatch.setattr(execution, "check_datasets", lambda study: None)
    monkeypatch.setattr(execution, "LocalExecutor", InThisProcess)
    monkeypatch.setattr(execution, "execute_runs", lambda *arguments: {})
    results = of_json(run.folder / "results.json")
    for facts, errors in ((source() | {"versions": versions()}, 0), ({"version": "0.1.0"}, 1)):
        to_json(run.folder / "results.json", results | facts)
        ended = command.works(study_command, "run", file, "--workers", 1)
        assert len(ended.errors) == errors
    assert "0.1.0 of commit unknown" in ended.errors[0]


def test_failed_run_does_not_stop_the_others(write, command, monkeypatch):
    class Failing(InThisProcess):
        def submit(self, run):
            (done := Future()).set_result("OSError: bad" if run == coop[1] else finish(run, 50.0))
            return done

    trainers = {"CoOp": "small", "ZeroshotCLIP": "small"}
    file = write(trainers=trainers, datasets=["small_land"], protocols="base2new")
    coop = load(file).sequences[0]
    monkeypatch.setattr(execution, "LocalExecutor", Failing)
    monkeypatch.setattr(execution, "check_datasets", lambda study: None)
    status, printed, _ = command(study_command, "run", file, "--workers", 1)
    assert status == 1 and f"Failed runs: 1\n{coop[1].folder}: OSError: bad\n" in printed
    missing = [run for run in load(file).runs() if not (run.folder / "results.json").exists()]
    assert missing == [coop[1]]


DAMAGES = [
    {"accuracy": 101},
    {"versions": {"torch": [2]}},
    {"nll": float("nan")},
    {"nll": -1.0},
    {"train_seconds": "5"},
    {"train_seconds": -5.0},
    {"test_seconds": 1e300},
    {"trainer": "\x1b]0;title\x07"},
    {"data_use": {"choose": [choice("8")]}},
    {"ood": [{"name": "a", "scores": {"MCM": {"auroc": 101}}}]},
]
DAMAGED = ["", "[]", '{"accuracy": 1e999}']
DAMAGED += [json.dumps({"accuracy": 50.0} | damage) for damage in DAMAGES]


def test_damaged_result_has_a_one_line_error(one_run, refused):
    file, run = one_run()
    for content in DAMAGED:
        (run.folder / "results.json").write_text(content)
        with one_line("/results.json is damaged: delete it and start its run again") as caught:
            read_results(run.folder)
    assert str(caught.value) in refused("tables", file)


def test_result_on_corrupted_images_by_an_older_version_is_refused(one_run):
    _, run = one_run()
    (run.folder / "results.json").write_text('{"accuracy": 50.0, "corruption": "fog 5"}')
    with one_line("results.json has a test of corrupted images, by an older version: delete it"):
        read_results(run.folder)


def test_what_test_images_have_calibrated_is_left_out(one_run):
    _, run = one_run()
    calibration = {"after": {"ece": 1.0, "nll": 0.4}, "test_images": 3}
    found = {"accuracy": 50.0, "calibration": calibration}
    (run.folder / "results.json").write_text(json.dumps(found))
    assert read_results(run.folder).other_measures == {}


def test_result_with_other_settings_is_refused(one_run, refused):
    file, run = one_run()
    settings = (run.folder / "config.yaml").read_text()
    cfg = cfg_from(*run.arguments, "OPTIM.LR", "0.5", "OPTIM.MAX_EPOCH", "3")
    (run.folder / "config.yaml").write_text(cfg.dump())
    words = (
        f"{run.folder} holds a run with OPTIM.LR 0.5, this one has 0.02 (OPTIM.MAX_EPOCH also "
        "differ)"
    )
    assert words in refused("tables", file) and words in refused("run", file)
    (run.folder / "config.yaml").write_text(settings)
    content = of_json(run.folder / "results.json") | {
        "seed": 2,
        "dataset": "EuroSAT",
    }
    to_json(run.folder / "results.json", content)  # copied from another run
    words = "holds a run with DATASET.NAME EuroSAT, this one has SmallLand (SEED also differ)"
    assert words in refused("tables", file)
