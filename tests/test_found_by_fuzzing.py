"""What `make fuzz` has found: each input that failed, as small as it gets. It is refused in one line now."""

import os

import pytest
import yaml
from drawn import arguments
from finished import finish

import parse_test_res
from common.errors import UsageError
from common.start import ROOT
from experiments.studies import command as studies
from experiments.studies.study_file import load


@pytest.fixture
def one_line(command, launch, prepare):
    """`one_line(program, arguments, *words)`: it ends in one line that begins with "error:" and has these words."""
    programs = {"train": launch, "prepare": prepare, "study": lambda *argv: command(studies, *argv)}

    def one_line(program, argv, *words):
        error = programs[program](*argv).error
        assert error.isprintable() and [word for word in words if word not in error] == [], error
        return error

    return one_line


@pytest.mark.parametrize("key", ["a\0b", "\ufeffOPTIM", "\x1b]0;title\x07", "\x9b2J"])
def test_error_shows_control_characters_as_escapes(key, one_line, tmp_path):
    dataset = ["--root", tmp_path, "--dataset-config-file", ROOT / "configs/datasets/small_objects.yaml"]
    one_line("train", ["--trainer", "CoOp", *dataset, "--output-dir", tmp_path / "out", key, "1"], repr(key)[1:-1])


def test_error_is_short_and_keeps_its_remedy(one_line, tmp_path):
    error = one_line("train", ["--output-dir", tmp_path / "out", "x" * 10_000])
    assert len(error) < 2100 and error.startswith("error: 'xxx") and error.endswith(" are pairs of KEY VALUE")


NAMES = ["tensorboard", "MultiModalPromptLearner", "log.txt", "cmat.pt", "tests.jsonl", "partial_test"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "file", "pipe"])
def test_run_does_not_write_through_links_or_wait_for_pipes(kind, name, one_line, eurosat, tiny, tmp_path):
    """A confusion matrix was written elsewhere, and a pipe named tests.jsonl or partial_test was waited for."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    target = {"folder": tmp_path / "elsewhere", "file": tmp_path / "elsewhere/file"}
    path = tmp_path / "out" / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target[kind])
    argv = arguments(eurosat, tiny, tmp_path / "out", "TEST.COMPUTE_CMAT", True)
    one_line("train", argv, f"{path} is a link or not a regular file: replace it")
    assert os.listdir(tmp_path / "out") == [name] and not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("link", ["base2new", "base2new/train_base/small_land", "studies"])
def test_study_does_not_write_through_a_link(link, one_line, tmp_path):
    """Whoever gives away the folder of a study could have files written elsewhere."""
    study = {"trainers": {"ZeroshotCLIP": "small"}, "datasets": ["small_land"], "seeds": [1]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"output": str(tmp_path / "out")}))
    for run in load(tmp_path / "study.yaml").runs():
        finish(run, 50.0)
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "out" / link
    if place.exists():
        place.rename(tmp_path / "elsewhere/found")
        place.symlink_to(tmp_path / "elsewhere/found")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    one_line("study", ["tables", tmp_path / "study.yaml"], f"{place} is a link: replace it by a folder")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("link", "action"), [("chosen", "status"), ("trials", "status"), ("trials", "tables")])
def test_study_with_a_link_among_its_folders_is_refused(link, action, one_line, tmp_path):
    """`status` followed it, and no command but `run` looked at the folders of trials."""
    study = {"trainers": {"CoOp": "small"}, "datasets": ["small_land"], "output": str(tmp_path / "out")}
    study["choose"] = {"by": "few-shot validation", "keys": {"OPTIM.LR": [0.1, 0.2]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    place = tmp_path / "out" / link
    place.parent.mkdir()
    place.symlink_to(tmp_path)
    one_line("study", [action, tmp_path / "study.yaml"], f"{place} is a link: replace it by a folder")


@pytest.mark.parametrize("name", ["", "unpacked", "EuroSAT.zip.partial", "unpacked/eurosat/2750"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_preparation_does_not_write_through_links_or_wait_for_pipes(kind, name, one_line, publish, tmp_path):
    publish("eurosat")
    path = tmp_path / "data/eurosat/.preparing" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere/unpacked").mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(path)
    one_line("prepare", ["eurosat"], f"{path} is a link or not a regular file: move {path} elsewhere, then: python")
    assert [found.name for found in (tmp_path / "elsewhere").rglob("*")] == ["unpacked"]


def test_folder_in_place_of_a_download_is_refused_on_a_line_of_its_own(one_line, publish, tmp_path):
    """The error stood at the end of a progress bar."""
    publish("eurosat")
    (tmp_path / "data/eurosat/.preparing/EuroSAT.zip.partial").mkdir(parents=True)
    one_line("prepare", ["eurosat"], "EuroSAT.zip.partial: Is a directory: fix this or choose another --root")


def test_endless_log_is_refused(tmp_path, monkeypatch):
    """It filled the memory."""
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1/log.txt").symlink_to("/dev/zero")
    monkeypatch.setattr("sys.argv", ["parse_test_res.py", str(tmp_path)])
    with pytest.raises(UsageError, match="seed1/log.txt is not a regular file"):
        parse_test_res.main()


def test_key_other_than_text_is_named(one_line, tmp_path):
    """yacs joined the names of the groups, and could not."""
    (tmp_path / "study.yaml").write_text("trainers: {CoOp: small}\ndatasets: [eurosat]\ntargets: {a: {true: {b: 1}}}\n")
    one_line("study", ["run", tmp_path / "study.yaml"], "the key True in", "put it in quotes")
