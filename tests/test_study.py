"""Study files, their runs, and the commands of tools/study.py."""

import json
import resource
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml
from finished import finish, finish_all

from common.errors import UsageError
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from experiments.session import cli_main
from experiments.studies import command
from experiments.studies.study_file import load
from trainers import methods

ROOT = Path(__file__).parent.parent
SMALL = yaml.safe_load((ROOT / "studies/small.yaml").read_text())


@pytest.fixture
def write(tmp_path):
    """`write(key=value, ...)` -> a study file like small.yaml, with some settings changed; None removes one."""

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
        ({"trainers": {"MPL": "smal"}}, "there is no YAML file of MPL 'smal': did you mean small?"),
        (
            {"trainers": {"x": {"trainer": "MPL", "confg": "small"}}},
            "there is no key of x 'confg': did you mean config?",
        ),
        (
            {"trainers": {"MPL": {"config": "small", "overrides": {"TRAINER.MPL.N_ADD_OPS": 1}}}},
            "MPL: unknown config key TRAINER.MPL.N_ADD_OPS; did you mean TRAINER.MPL.N_ADD_OP?",
        ),
        (
            {"trainers": {"x": {"trainer": "MPL", "config": "small", "datasets": {"small_land": {"OPTIM.LR": "x"}}}}},
            "x: OPTIM.LR is 'x': give a number from 0 to 1,000",
        ),
        (
            {"trainers": {"x": {"trainer": "MPL", "config": "small", "datasets": {"eurosat": {"OPTIM.LRR": 0.1}}}}},
            # the study has no run on eurosat
            "x: unknown config key OPTIM.LRR; did you mean OPTIM.LR?",
        ),
        *(
            ({"trainers": {"x": {"trainer": "MPL", "config": "small"} | wrong}}, message)
            for wrong, message in (
                ({"overrides": None}, "overrides of x must be a mapping of KEY: VALUE, not None"),
                (
                    {"overrides": ["OPTIM.LR", 0.1]},
                    "overrides of x must be a mapping of KEY: VALUE, not ['OPTIM.LR', 0.1]",
                ),
                (
                    {"datasets": ["small_land"]},
                    "datasets of x must be a mapping of DATASET: OVERRIDES, not ['small_land']",
                ),
                ({"datasets": {"small_land": None}}, "overrides of x must be a mapping of KEY: VALUE, not None"),
                (
                    {"overrides": {"TRAINER.MPL.PREC": "fp8"}},
                    "x: TRAINER.MPL.PREC is 'fp8': give one of fp16, bf16, fp32, amp",
                ),
                ({"overrides": {"SEED": 4}}, "x cannot override SEED: use the study's own key seeds"),
                ({"overrides": {"OUTPUT_DIR": "there"}}, "use the study's own key output"),
                (
                    {"overrides": {"TRAINER.COOP.N_CTX": 4}},
                    "x cannot override TRAINER.COOP.N_CTX: MPL has the settings TRAINER.MPL.*",
                ),
            )
        ),
        ({"trainers": None}, "the study has no trainers: see studies/small.yaml"),
        ({"trainers": {}}, "the study has no trainers"),
        ({"datasets": None, "protocols": "base2new"}, "the study has no datasets"),
        ({"seeds": []}, "the study has no seeds"),
        ({"shots": []}, "the study has no shots"),
        ({"datasets": ["small_shape"]}, "there is no dataset 'small_shape': did you mean small_shapes?"),
        ({"targets": ["nothing"]}, "there is no dataset 'nothing'"),
        ({"protocols": ["base2old"]}, "there is no protocol 'base2old': did you mean base2new?"),
        ({"source": None}, "cross_dataset needs a source"),
        ({"seed": [1]}, "there is no key 'seed': did you mean seeds?"),
        ({"seeds": ["one"]}, "seeds has the value 'one': give integers from 0 to 4,294,967,295"),
        ({"shots": [0, 1]}, "shots has the value 0: give integers from 1 to 1,000,000"),
        ({"cpus": 0.5}, "cpus has the value 0.5"),
        ({"seeds": [1, 2**33]}, "seeds has the value 8589934592: give integers from 0 to 4,294,967,295"),
        ({"cpus": 100000}, "cpus has the value 100000: give integers from 1 to 1,024"),
        ({"backbone": "ViT-B/61"}, "there is no backbone 'ViT-B/61': did you mean ViT-B/16?"),
        ({"backbone": {"a": 1}}, "backbone is CfgNode({'a': 1}): give a name"),
        ({"root": ""}, "root is '': give the path of a folder"),
        ({"output": ["a"]}, "output is ['a']: give the path of a folder"),
        ({"root": date(2024, 1, 1)}, "Key root with value <class 'datetime.date'> is not a valid type"),
        ({"root": "a\0b"}, "DATASET.ROOT is 'a\\x00b': give text"),
        ({"output": "~nosuchuser/\0"}, "OUTPUT_DIR is"),
        ({"root": "--help"}, "root is '--help': give the path of a folder"),
        ({"root": True}, "root is True: give the path of a folder"),
        ({"backbone": "--help"}, "backbone is '--help': give a name"),
        ({"trainers": {"MPL": "../CoOp/small"}}, "there is no YAML file of MPL '../CoOp/small'"),
        (
            {"trainers": {"": {"trainer": "MPL", "config": "small"}}},
            "the name '' is empty, has a slash or starts with a dot",
        ),
        ({"gpus": 2}, "gpus has the value 2: give numbers from 0 to 1"),
        ({"seeds": [1, 2, 1]}, "seed1 twice: leave one out"),
        ({"trainers": {"MPL": "small", "x": {"trainer": "MPL", "config": "small"}}}, "MPL/small/seed1 twice"),
    ],
)
def test_invalid_study_has_a_one_line_error(write, settings, message):
    file = write(**settings)
    with pytest.raises(UsageError) as caught:
        load(file)
    assert str(caught.value).count(str(file)) == 1
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "", "text"])
def test_damaged_study_file_has_a_one_line_error(tmp_path, content):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UsageError, match="invalid YAML|no trainers|is not a config"):
        load(tmp_path / "study.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "nowhere.yaml")


def test_runs_have_the_folders_of_the_scripts(write, tmp_path):
    folders = {str(run.folder.relative_to(tmp_path)) for run in load(write()).runs()}
    assert folders >= {
        "base2new/train_base/small_land/shots_16/MPL/small/seed1",
        "base2new/test_new/small_land/shots_16/ZeroshotCLIP/small/seed3",
        "crossdataset/small_source/CoCoOp/small_cross_datasets_16shots/seed2",
        "crossdataset/evaluation/small_source_outline/VPT/small_cross_datasets_16shots/seed2",
    }
    assert len(folders) == 14 * 3 * (5 * 2 + 8)  # 13 methods, one of them in two forms


def test_prompts_are_tested_by_the_run_sequence_of_their_training(write):
    for sequence in load(write()).sequences():
        trained, *tests = sequence
        assert ("--eval-only" in trained.arguments) == (trained.variant.name == "ZeroshotCLIP")
        for test in tests:
            assert test.arguments[test.arguments.index("--model-dir") + 1] == str(trained.folder)
            assert (test.variant, test.seed) == (trained.variant, trained.seed)


def test_overridden_settings_have_their_own_folder(write):
    value = {"trainer": "MPL", "config": "small", "overrides": {"TRAINER.MPL.N_ADD_OP": 3}}
    ((run,), *_) = load(write(trainers={"MPL add 3": value}, protocols="few_shot", shots=[1, 2])).sequences()
    assert run.arguments[-2:] == ("TRAINER.MPL.N_ADD_OP", "3")
    assert run.folder.match("small_objects/MPL/MPL_add_3_1shots/seed1")


def test_dry_run_prints_every_command_only(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], targets=["small_counts"], seeds=[1])
    monkeypatch.setattr("sys.argv", ["study", "run", str(file), "--dry-run"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("python train.py --skip-finished --root data --output-dir ") for line in lines)
    assert list(tmp_path.iterdir()) == [file]


def test_overrides_for_one_dataset(write):
    value = {"config": "small", "overrides": {"OPTIM.LR": 0.1}, "datasets": {"small_land": {"OPTIM.LR": 0.2}}}
    for (run,) in load(write(trainers={"CoOp": value}, protocols="few_shot")).sequences():
        assert run.arguments.count("OPTIM.LR") == (2 if run.dataset == "small_land" else 1)
        assert run.arguments[-2:] == ("OPTIM.LR", "0.2" if run.dataset == "small_land" else "0.1")


def test_method_without_config_runs_as_its_scripts(write, script):
    trainers = dict.fromkeys(("CoOp", "PromptSRC", "MPL"))
    study = load(write(trainers=trainers, protocols="few_shot", datasets=["dtd"], shots=[1, 2, 16], cache=None))
    for (run,) in study.sequences():
        name = f"any/few_shot.sh {run.variant.method} dtd {run.seed}".split()
        _, (call,) = script(*name, SHOTS=run.shots, BACKBONE="")
        ours = parse_arguments(list(run.arguments))
        theirs = parse_arguments(call[1:])
        assert ours.opts == theirs.opts and ours.config_file.endswith(theirs.config_file)
        assert str(run.folder).removeprefix(str(study.output)) in theirs.output_dir


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_included_study_is_valid(file):
    """Each kind of its runs has a configuration, and each schedule of vision prompts is possible."""
    seen = {}
    for run in load(file).runs():
        seen.setdefault((run.protocol, run.variant.name), run)
    assert len(seen) >= 3
    for run in seen.values():
        cfg = setup_cfg(parse_arguments(list(run.arguments)))
        method = methods()[run.variant.method]
        lengths = method.vision_lengths(method.settings_of(cfg), 12)
        assert (run.variant.method == "MPL") <= (lengths is not None and len(lengths) == 12)


def test_paper_table_has_eleven_datasets_five_methods_and_six_seeds():
    sequences = load(ROOT / "studies/base2new.yaml").sequences()
    assert len(sequences) == 11 * 5 * 6
    assert {len(sequence) for sequence in sequences} == {2}


def test_name_of_a_method_in_a_csv_table_is_no_formula(write, tmp_path):
    file = write(trainers={"=1+1": {"trainer": "MPL", "config": "small"}}, datasets=["small_land"], seeds=[1])
    finish(load(file).runs()[0], 50.0)
    command.main(["tables", str(file)])
    assert ",'=1+1,small_land,50.0," in (tmp_path / "studies/study/tables.csv").read_text()


def test_status_and_tables_of_a_study_in_progress(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    monkeypatch.setattr("sys.argv", ["study", "tables", str(file)])
    with pytest.raises(UsageError, match="no run of this study is finished"):
        command.main()
    finish(load(file).sequences()[0][0], 50.0)
    command.main()
    made = tmp_path / "studies/study"
    assert "| MPL | 50.00 | 50.00 |" in (made / "tables.md").read_text()
    assert "50.00" in (made / "tables.tex").read_text()
    assert json.loads((made / "tables.json").read_text())["runs"][0]["accuracy"] == 50.0
    assert "base2new,base,MPL,small_land,50.0,,1,1," in (made / "tables.csv").read_text()
    monkeypatch.setattr("sys.argv", ["study", "status", str(file)])
    capsys.readouterr()
    command.main()
    assert capsys.readouterr().out == "1 of 2 runs are done, 0 are running, 0 have failed, 1 are left\n"


@pytest.mark.slow
def test_failed_run_does_not_stop_the_others(write, drawn, monkeypatch, capsys):
    """The prompts of one method are missing; zero-shot CLIP needs none."""
    file = write(
        trainers={"CoOp": "small", "ZeroshotCLIP": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1],
        root=str(drawn),
    )  # fmt: skip
    coop, zero_shot = load(file).sequences()
    finish(coop[0], 50.0)
    (coop[0].folder / "config.yaml").write_text("DATASET: {NUM_SHOTS: 16}\n")
    monkeypatch.setattr("sys.argv", ["study", "run", str(file), "--workers", "1"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "1 run has failed" in printed.out
    assert "no CoOp checkpoint" in printed.out
    assert all((run.folder / "results.json").is_file() for run in zero_shot)


def test_plots_are_written_beside_the_tables_and_listed(write, tmp_path, monkeypatch, capsys):
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    finish_all(load(file))
    monkeypatch.setattr("sys.argv", ["study", "plots", str(file)])
    command.main()
    written = [Path(line.removeprefix("Written: ")) for line in capsys.readouterr().out.splitlines()]
    kinds = ("png", "svg", "pdf")
    assert [path.name for path in written] == [
        f"{name}.{kind}" for name in ("accuracy_time", "prompts") for kind in kinds
    ]
    assert all(path.parent == tmp_path / "studies/study" and path.stat().st_size > 1000 for path in written)


@pytest.fixture
def one_run(write):
    """The file of a study, and its one finished run."""
    file = write(trainers={"MPL": "small"}, datasets=["small_land"], protocols="base2new", seeds=[1])
    run = load(file).sequences()[0][0]
    finish(run, 50.0)
    return file, run


@pytest.fixture
def refused(ended, monkeypatch):
    """`refused(name, file)`: the one line of stderr of a command that exits with status 2."""

    def refused(name: str, file: Path) -> str:
        monkeypatch.setattr("sys.argv", ["study", name, str(file)])
        status, _, errors = ended(lambda: cli_main(command.main))
        assert (status, len(errors)) == (2, 1)
        return errors[0]

    return refused


@pytest.mark.parametrize("content", ["", '{"accuracy": 5', "[]", "{}", "3"])
def test_damaged_result_has_a_one_line_error(one_run, refused, content):
    file, run = one_run
    (run.folder / "results.json").write_text(content)
    assert f"{run.folder}/results.json is damaged: delete it" in refused("tables", file)


@pytest.mark.parametrize("name", ["tables", "run"])
def test_result_with_other_settings_is_refused(one_run, refused, name):
    file, run = one_run
    cfg = setup_cfg(parse_arguments([*run.arguments, "OPTIM.LR", "0.5", "OPTIM.MAX_EPOCH", "3"]))
    (run.folder / "config.yaml").write_text(cfg.dump())
    words = f"{run.folder} holds a run with OPTIM.LR 0.5, this one has 0.02 (OPTIM.MAX_EPOCH also differ)"
    assert words in refused(name, file)


@pytest.mark.parametrize("name", ["tables", "run"])
def test_result_copied_from_another_run_is_refused(one_run, refused, name):
    file, run = one_run
    content = json.loads((run.folder / "results.json").read_text()) | {"seed": 2, "dataset": "EuroSAT"}
    (run.folder / "results.json").write_text(json.dumps(content))
    assert "holds a run with DATASET.NAME EuroSAT, this one has SmallLand (SEED also differ)" in refused(name, file)


def test_full_disk_has_a_one_line_error_and_keeps_the_old_tables(one_run, refused):
    file, _ = one_run
    tables = load(file).output / "studies/study/tables.md"
    tables.parent.mkdir(parents=True)
    tables.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # limits the size of files
    try:
        assert f"cannot write: File too large; free some space or change the permissions: '{tables}'" in refused(
            "tables", file
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tables.parent.iterdir()] == ["tables.md"] and tables.read_text() == "old"


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_invalid_number_of_workers(one_run, monkeypatch, capsys, workers):
    monkeypatch.setattr("sys.argv", ["study", "run", str(one_run[0]), "--workers", workers])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2 and f"expected an integer >= 1, got {workers!r}" in capsys.readouterr().err


def test_cache_of_a_study_is_a_folder(study_file):
    assert load(study_file("none", cache=None)).cache is None
    study = load(study_file("some", cache="~/there"))
    assert study.cache.is_absolute() and str(study.cache) in study.runs()[0].arguments
    for value in ("", "-x", 3.5, ["a"]):
        with pytest.raises(UsageError, match="cache is .*: give the path of a folder"):
            load(study_file("bad", cache=value))


@pytest.mark.parametrize("value", ["seeds", None, 3])
def test_together_has_no_effect_but_a_notice_and_its_old_results_are_read(value, study_file, tmp_path, capsys):
    study, without = load(study_file("a", together=value)), load(study_file("b"))
    assert study == replace(without, output=study.output)
    assert capsys.readouterr().err.startswith("The key together has no effect any more")
    finish(study.runs()[0], 50.0, runs_together=3, evaluated_in="output/seed1")
    command.main(["status", str(tmp_path / "a.yaml")])
    assert capsys.readouterr().out.startswith("1 of 4 runs are done")
