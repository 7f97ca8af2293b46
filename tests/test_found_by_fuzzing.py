"""What `make fuzz` has found: each input that failed, as small as it gets. It is refused in one line now."""

import json
import os

import pytest
import yaml
from drawn import arguments
from finished import finish

import parse_test_res
from common.errors import UsageError
from experiments.results import read_results
from experiments.studies import command as studies
from experiments.studies.study_file import load


@pytest.mark.parametrize("key", ["a\0b", "\ufeffOPTIM", "\x1b]0;title\x07", "\x9b2J"])
def test_error_shows_control_characters_as_escapes(key, launch, tmp_path):
    status, _, errors = launch("--trainer", "CoOp", "--output-dir", tmp_path / "out", key, "1")
    assert (status, len(errors)) == (2, 1) and errors[0].isprintable()
    assert repr(key)[1:-1] in errors[0]


def test_error_is_short_and_keeps_its_remedy(launch, tmp_path):
    name = "x" * 10_000
    status, _, errors = launch("--output-dir", tmp_path / "out", name)
    assert (status, len(errors)) == (2, 1) and len(errors[0]) < 2100
    assert errors[0].startswith("error: 'xxx") and errors[0].endswith(" are pairs of KEY VALUE")


NAMES = ["tensorboard", "MultiModalPromptLearner", "log.txt", "cmat.pt", "tests.jsonl", "partial_test"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "file", "pipe"])
def test_run_does_not_write_through_links_or_wait_for_pipes(kind, name, launch, eurosat, tiny, tmp_path):
    """A confusion matrix was written elsewhere, and a pipe named tests.jsonl or partial_test was waited for."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    target = {"folder": tmp_path / "elsewhere", "file": tmp_path / "elsewhere/file"}
    path = tmp_path / "out" / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target[kind])
    status, _, errors = launch(*arguments(eurosat, tiny, tmp_path / "out", "TEST.COMPUTE_CMAT", True))
    assert (status, len(errors)) == (2, 1) and f"{path} is a link or not a regular file: replace it" in errors[0]
    assert os.listdir(tmp_path / "out") == [name] and not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("link", ["base2new", "base2new/train_base/small_land", "studies"])
def test_study_does_not_write_through_a_link(link, command, tmp_path):
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
    status, _, errors = command(studies, "tables", tmp_path / "study.yaml")
    assert (status, len(errors)) == (2, 1) and f"{place} is a link: replace it by a folder" in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "unpacked", "EuroSAT.zip.partial", "unpacked/eurosat/2750"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_preparation_does_not_write_through_links_or_wait_for_pipes(kind, name, prepare_fails, publish, tmp_path):
    publish("eurosat")
    path = tmp_path / "data/eurosat/.preparing" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere/unpacked").mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(path)
    prepare_fails(["eurosat"], f"{path} is a link or not a regular file: move {path} elsewhere, then: python")
    assert [found.name for found in (tmp_path / "elsewhere").rglob("*")] == ["unpacked"]


def test_folder_in_place_of_a_download_is_refused_on_a_line_of_its_own(prepare, publish, tmp_path):
    """The error stood at the end of a progress bar."""
    publish("eurosat")
    (tmp_path / "data/eurosat/.preparing/EuroSAT.zip.partial").mkdir(parents=True)
    status, _, errors = prepare("eurosat")
    assert (status, len(errors)) == (2, 1) and errors[0].startswith("error: ")
    assert "EuroSAT.zip.partial: Is a directory: fix this or choose another --root" in errors[0]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folder_or_pipe_named_like_an_archive_is_refused(kind, prepare_fails, publish, tmp_path):
    """Without that, the archive was downloaded, as if none were given."""
    publish("eurosat")
    path = tmp_path / "given/EuroSAT.zip"
    path.mkdir(parents=True) if kind == "folder" else (path.parent.mkdir(), os.mkfifo(path))
    prepare_fails(
        ["eurosat", "--from", path.parent], f"{path} is not a regular file: move {path} elsewhere, then: python"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy", 1e308),
        ("accuracy", -1),
        ("n_test", -5),
        ("trainer", "\x1b]0;title\x07"),
        ("versions", 0.5),
        ("versions", {"torch": [2]}),
    ],
)
def test_results_out_of_range_are_refused(key, value, tmp_path):
    (tmp_path / "results.json").write_text(
        json.dumps({"accuracy": 50.0, "n_test": 4, "trainer": "CoOp"} | {key: value})
    )
    with pytest.raises(UsageError, match="results.json is damaged: delete it and start its run again"):
        read_results(tmp_path)


def test_endless_log_is_refused(tmp_path, monkeypatch, capsys):
    """It filled the memory."""
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1/log.txt").symlink_to("/dev/zero")
    monkeypatch.setattr("sys.argv", ["parse_test_res.py", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        parse_test_res.main()
    assert caught.value.code == 2
    assert "seed1/log.txt is not a regular file" in capsys.readouterr().err.splitlines()[-1]


def test_key_other_than_text_is_named(command, tmp_path):
    """yacs joined the names of the groups, and could not."""
    (tmp_path / "study.yaml").write_text("trainers: {CoOp: small}\ndatasets: [eurosat]\ntargets: {a: {true: {b: 1}}}\n")
    status, _, errors = command(studies, "run", tmp_path / "study.yaml")
    assert (status, len(errors)) == (2, 1) and "the key True in" in errors[0] and "put it in quotes" in errors[0]
