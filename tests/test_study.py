"""A study file becomes runs, the runs become tables."""

import json
import resource
from pathlib import Path

import pytest
import yaml
from finished import finish, finish_all

from common.errors import UsageError
from experiments.configuration import parse_arguments, setup_cfg
from experiments.session import cli_main
from experiments.studies import command as study_tool
from experiments.studies.command import load
from trainers.mpl import vision_lengths

ROOT = Path(__file__).parent.parent
SMALL = yaml.safe_load((ROOT / "studies/small.yaml").read_text())


@pytest.fixture
def write(tmp_path):
    """`write(key=value, ...)` -> a study file like small.yaml, with other settings; None takes one out."""

    def write(**settings):
        content = {
            key: value for key, value in (SMALL | {"output": str(tmp_path)} | settings).items() if value is not None
        }
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainers": {"MLP": "small"}}, "there is no trainer 'MLP': did you mean MPL?"),
        ({"trainers": {"MPL": "smal"}}, "there is no setting of MPL, 'smal': did you mean small?"),
        (
            {"trainers": {"x": {"trainer": "MPL", "confg": "small"}}},
            "there is no key of x 'confg': did you mean config?",
        ),
        (
            {"trainers": {"MPL": {"config": "small", "overrides": {"TRAINER.MPL.N_ADD_OPS": 1}}}},
            "MPL: unknown config key TRAINER.MPL.N_ADD_OPS in the given options; did you mean TRAINER.MPL.N_ADD_OP?",
        ),
        (
            {"trainers": {"x": {"trainer": "MPL", "config": "small", "datasets": {"small_land": {"OPTIM.LR": 1}}}}},
            "x: OPTIM.LR in the given options takes a float, not an int",
        ),
        (
            {"trainers": {"x": {"trainer": "MPL", "config": "small", "datasets": {"eurosat": {"OPTIM.LRR": 0.1}}}}},
            "x: unknown config key OPTIM.LRR in the given options; did you mean OPTIM.LR?",  # eurosat has no run
        ),
        *(
            ({"trainers": {"x": {"trainer": "MPL", "config": "small"} | wrong}}, message)
            for wrong, message in (
                ({"overrides": None}, "overrides of x cannot be None: give a mapping of KEY: VALUE"),
                ({"overrides": ["OPTIM.LR", 0.1]}, "overrides of x cannot be ['OPTIM.LR', 0.1]"),
                ({"datasets": ["small_land"]}, "datasets of x cannot be ['small_land']: give a mapping"),
                ({"datasets": {"small_land": None}}, "overrides of x cannot be None"),
                ({"overrides": {"SEED": 4}}, "x cannot override SEED: the study's own key is seeds"),
                ({"overrides": {"OUTPUT_DIR": "there"}}, "the study's own key is output"),
                ({"overrides": {"TRAINER.COOP.N_CTX": 4}}, "override TRAINER.COOP.N_CTX: it is no setting of MPL"),
            )
        ),
        ({"trainers": None}, "names no trainers"),
        ({"datasets": ["small_shape"]}, "there is no dataset 'small_shape': did you mean small_shapes?"),
        ({"targets": ["nothing"]}, "there is no dataset 'nothing'"),
        ({"protocols": ["base2old"]}, "there is no protocol 'base2old': did you mean base2new?"),
        ({"source": None}, "cross_dataset needs a source"),
        ({"seed": [1]}, "there is no key 'seed': did you mean seeds?"),
        ({"seeds": ["one"]}, "seeds cannot be 'one': give whole numbers from 0"),
        ({"shots": [0, 1]}, "shots cannot be 0: give whole numbers from 1"),
        ({"cpus": 0.5}, "cpus cannot be 0.5"),
        ({"gpus": -1}, "gpus cannot be -1"),
        ({"seeds": [1, 2, 1]}, "seed1 twice: leave one out"),
        ({"trainers": {"MPL": "small", "x": {"trainer": "MPL", "config": "small"}}}, "MPL/small/seed1 twice"),
    ],
)
def test_a_study_that_cannot_be_says_why_in_a_line(write, settings, message):
    with pytest.raises(UsageError) as caught:
        load(write(**settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "", "text"])
def test_a_damaged_study_file_is_one_line(tmp_path, content):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UsageError, match="no YAML|no settings"):
        load(tmp_path / "study.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "nowhere.yaml")


def test_runs_are_in_the_scripts_own_folders(write, tmp_path):
    places = {str(run.folder.relative_to(tmp_path)) for chain in load(write()).chains() for run in chain}
    assert places >= {
        "base2new/train_base/small_land/shots_16/MPL/small/seed1",
        "base2new/test_new/small_land/shots_16/ZeroshotCLIP/small/seed3",
        "crossdataset/small_source/CoCoOp/small_cross_datasets_16shots/seed2",
        "crossdataset/evaluation/small_source_outline/VPT/small_cross_datasets_16shots/seed2",
    }
    assert len(places) == 8 * 3 * (5 * 2 + 8)


def test_a_run_is_tested_with_the_prompts_of_its_own_training(write):
    for chain in load(write()).chains():
        trained, *tests = chain
        assert ("--eval-only" in trained.arguments) == (trained.variant.name == "ZeroshotCLIP")
        for test in tests:
            assert test.arguments[test.arguments.index("--model-dir") + 1] == str(trained.folder)
            assert (test.variant, test.seed) == (trained.variant, trained.seed)


def test_settings_may_be_overridden_under_another_name(write):
    value = {"trainer": "MPL", "config": "small", "overrides": {"TRAINER.MPL.N_ADD_OP": 3}}
    (chain, *_) = load(write(trainers={"MPL add 3": value}, protocols="few_shot", shots=[1, 2])).chains()
    assert chain[0].arguments[-2:] == ("TRAINER.MPL.N_ADD_OP", "3")
    assert chain[0].folder.match("small_objects/MPL/MPL_add_3_1shots/seed1")


def test_a_dry_run_prints_every_command_and_does_nothing(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], targets=["small_counts"], seeds=[1])
    monkeypatch.setattr("sys.argv", ["study", "run", str(file), "--dry-run"])
    study_tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("python train.py --skip-finished --root data --output-dir ") for line in lines)
    assert list(tmp_path.iterdir()) == [file]


def test_datasets_may_have_settings_of_their_own(write):
    value = {"config": "small", "overrides": {"OPTIM.LR": 0.1}, "datasets": {"small_land": {"OPTIM.LR": 0.2}}}
    for (run,) in load(write(trainers={"CoOp": value}, protocols="few_shot")).chains():
        assert run.arguments[-4:][:2] == (
            ("OPTIM.LR", "0.1") if run.dataset == "small_land" else ("DATASET.SUBSAMPLE_CLASSES", "all")
        )
        assert run.arguments[-2:] == ("OPTIM.LR", "0.2" if run.dataset == "small_land" else "0.1")


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_study_that_comes_with_the_project_is_one(file):
    """Each kind of its runs gets as far as a configuration; MPL's schedules are possible."""
    seen = {}
    for run in (run for chain in load(file).chains() for run in chain):
        seen.setdefault((run.protocol, run.variant.name), run)
    assert len(seen) >= 5
    for run in seen.values():
        cfg = setup_cfg(parse_arguments(list(run.arguments)))
        assert run.variant.method != "MPL" or len(vision_lengths(cfg.TRAINER.MPL, 12)) == 12


def test_the_papers_table_takes_eleven_datasets_five_methods_and_six_seeds():
    chains = load(ROOT / "studies/base2new.yaml").chains()
    assert len(chains) == 11 * 5 * 6
    assert {len(chain) for chain in chains} == {2}


def test_status_and_tables_of_a_study_in_progress(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    monkeypatch.setattr("sys.argv", ["study", "tables", str(file)])
    with pytest.raises(UsageError, match="no run of this study is done yet"):
        study_tool.main()
    finish(load(file).chains()[0][0], 50.0)
    study_tool.main()
    made = tmp_path / "studies/study"
    assert "| MPL | 50.00 | 50.00 |" in (made / "tables.md").read_text()
    assert "50.00" in (made / "tables.tex").read_text()
    assert json.loads((made / "tables.json").read_text())["runs"][0]["accuracy"] == 50.0
    assert "base2new,base,MPL,small_land,50.0,,1,1," in (made / "tables.csv").read_text()
    monkeypatch.setattr("sys.argv", ["study", "status", str(file)])
    capsys.readouterr()
    study_tool.main()
    assert capsys.readouterr().out == "1 of 2 runs are done, 0 are running, 0 have failed, 1 are left\n"


def test_one_failed_run_does_not_stop_the_others(write, tmp_path, monkeypatch, capsys):
    """The prompts that one method is to be tested with are gone; zero-shot CLIP needs none."""
    file = write(
        trainers={"CoOp": "small", "ZeroshotCLIP": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1],
        root=str(tmp_path / "data"),
    )  # fmt: skip
    coop, zero_shot = load(file).chains()
    finish(coop[0], 50.0)
    (coop[0].folder / "config.yaml").write_text("DATASET: {NUM_SHOTS: 16}\n")
    monkeypatch.setattr("sys.argv", ["study", "run", str(file), "--workers", "2"])
    with pytest.raises(SystemExit) as caught:
        study_tool.main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "1 run has failed" in printed.out
    assert "no CoOp checkpoint" in printed.out
    assert all((run.folder / "results.json").is_file() for run in zero_shot)


def test_plots_are_written_beside_the_tables_and_said(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    finish_all(load(file))
    monkeypatch.setattr("sys.argv", ["study", "plots", str(file)])
    study_tool.main()
    written = [Path(line.removeprefix("Written: ")) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["accuracy_time.png", "accuracy_time.svg", "prompts.png", "prompts.svg"]
    assert all(path.parent == tmp_path / "studies/study" and path.stat().st_size > 1000 for path in written)


@pytest.fixture
def one_run(write):
    """The file of a study, and the one of its runs that is done."""
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    run = load(file).chains()[0][0]
    finish(run, 50.0)
    return file, run


@pytest.fixture
def refused(ended, monkeypatch):
    """`refused(command, file)`: the one line that it ends in."""

    def refused(command: str, file: Path) -> str:
        monkeypatch.setattr("sys.argv", ["study", command, str(file)])
        status, _, errors = ended(lambda: cli_main(study_tool.main))
        assert (status, len(errors)) == (2, 1)
        return errors[0]

    return refused


@pytest.mark.parametrize("content", ["", '{"accuracy": 5', "[]", "{}", "3"])
def test_a_damaged_result_is_one_line(one_run, refused, content):
    file, run = one_run
    (run.folder / "results.json").write_text(content)
    assert f"{run.folder}/results.json is damaged: delete it" in refused("tables", file)


@pytest.mark.parametrize("command", ["tables", "run"])
def test_a_result_of_other_settings_is_not_mixed_in(one_run, refused, command):
    file, run = one_run
    cfg = setup_cfg(parse_arguments([*run.arguments, "OPTIM.LR", "0.5", "OPTIM.MAX_EPOCH", "3"]))
    (run.folder / "config.yaml").write_text(cfg.dump())
    words = f"{run.folder} holds a run with OPTIM.LR 0.5, this one has 0.02 (so differ OPTIM.MAX_EPOCH)"
    assert words in refused(command, file)


@pytest.mark.parametrize("command", ["tables", "run"])
def test_a_result_that_came_from_another_folder_is_not_mixed_in(one_run, refused, command):
    file, run = one_run
    content = json.loads((run.folder / "results.json").read_text()) | {"seed": 2, "dataset": "EuroSAT"}
    (run.folder / "results.json").write_text(json.dumps(content))
    assert "holds a run with DATASET.NAME EuroSAT, this one has SmallLand (so differ SEED)" in refused(command, file)


def test_a_full_disk_is_one_line_and_the_old_tables_stay(one_run, refused):
    file, _ = one_run
    tables = load(file).output / "studies/study/tables.md"
    tables.parent.mkdir(parents=True)
    tables.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond
    try:
        assert f"cannot write: File too large; make room, or permit it: '{tables}'" in refused("tables", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tables.parent.iterdir()] == ["tables.md"] and tables.read_text() == "old"


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_a_number_of_workers_that_cannot_be_is_refused(one_run, monkeypatch, capsys, workers):
    monkeypatch.setattr("sys.argv", ["study", "run", str(one_run[0]), "--workers", workers])
    with pytest.raises(SystemExit) as caught:
        study_tool.main()
    assert caught.value.code == 2 and f"{workers} is no whole number from 1" in capsys.readouterr().err
