"""A study file becomes runs, the runs become tables."""

import json
from pathlib import Path

import pytest
import yaml

from tools import study as study_tool
from tools.runs import Study, Variant
from tools.study import StudyError, load
from tools.tables import collect, markdown

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


def finish(run, accuracy: float) -> None:
    """Pretend that a run has been done."""
    run.folder.mkdir(parents=True)
    measured = {"accuracy": accuracy, "n_test": 10, "train_seconds": 2.0, "test_seconds": 1.0, "device": "cpu"}
    (run.folder / "results.json").write_text(json.dumps(measured))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainers": {"MLP": "small"}}, "there is no trainer 'MLP': did you mean MPL?"),
        ({"trainers": {"MPL": "smal"}}, "there is no setting of MPL, 'smal': did you mean small?"),
        (
            {"trainers": {"x": {"trainer": "MPL", "confg": "small"}}},
            "there is no key of x 'confg': did you mean config?",
        ),
        ({"trainers": None}, "names no trainers"),
        ({"datasets": ["small_shape"]}, "there is no dataset 'small_shape': did you mean small_shapes?"),
        ({"targets": ["nothing"]}, "there is no dataset 'nothing'"),
        ({"protocols": ["base2old"]}, "there is no protocol 'base2old': did you mean base2new?"),
        ({"source": None}, "cross_dataset needs a source"),
        ({"seed": [1]}, "there is no key 'seed': did you mean seeds?"),
    ],
)
def test_a_study_that_cannot_be_says_why_in_a_line(write, settings, message):
    with pytest.raises(StudyError) as caught:
        load(write(**settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "", "text"])
def test_a_damaged_study_file_is_one_line(tmp_path, content):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(StudyError, match="no YAML|no settings"):
        load(tmp_path / "study.yaml")
    with pytest.raises(StudyError, match="cannot read"):
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


@pytest.fixture
def half_done(tmp_path):
    """A study of two methods of which one lacks its results on new classes of the second dataset."""
    variants = (Variant("CoOp", "CoOp", "small"), Variant("MPL", "MPL", "small"))
    study = Study(variants, ("small_land", "small_counts"), seeds=(1, 2), output=tmp_path)
    for base, new in study.chains():
        finish(base, 60 + 10 * base.seed)
        if (new.variant.name, new.dataset) != ("MPL", "small_counts"):
            finish(new, 40 if new.variant.name == "CoOp" else 50)
    return study


def test_tables_have_means_deviations_and_harmonic_means_and_show_what_is_missing(half_done):
    text = markdown(half_done, collect(half_done))
    land, counts, average = text.split("###")[1:]
    assert "| CoOp | 75.0 ± 5.0 | 40.0 ± 0.0 | 52.2 |" in land
    assert "| MPL | 75.0 ± 5.0 | 50.0 ± 0.0 | 60.0 |" in land
    assert "| MPL | 75.0 ± 5.0 | - | - |" in counts
    assert "| CoOp | 75.0 | 40.0 | 52.2 |" in average
    assert "| MPL | 75.0 | - | - |" in average


def test_status_and_tables_of_a_study_in_progress(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    monkeypatch.setattr("sys.argv", ["study", "tables", str(file)])
    with pytest.raises(StudyError, match="no run of this study is done yet"):
        study_tool.main()
    finish(load(file).chains()[0][0], 50.0)
    study_tool.main()
    assert "| MPL | 50.0 ± 0.0 | - | - |" in (tmp_path / "tables.md").read_text()
    assert json.loads((tmp_path / "tables.json").read_text())[0]["accuracy"] == 50.0
    monkeypatch.setattr("sys.argv", ["study", "status", str(file)])
    capsys.readouterr()
    study_tool.main()
    assert capsys.readouterr().out == "1 of 2 runs are done, 1 are left\n"


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
    assert "1 runs have failed" in printed.out
    assert "no CoOp checkpoint" in printed.out
    assert all((run.folder / "results.json").is_file() for run in zero_shot)
