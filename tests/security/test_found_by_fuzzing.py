"""What `make fuzz` has found: each input that failed, as small as it gets. It is refused in one
line now.
"""

import os

import pytest
import yaml
from drawn import arguments
from finished import finish

import parse_test_res
from common.errors import UsageError
from studies import command as studies
from studies.plan import load


@pytest.fixture
def one_line(command, launch, prepare):
    """`one_line(program, arguments, *words)`: it ends in one line that begins with "error:" and has
    these words.
    """
    programs = {"train": launch, "prepare": prepare, "study": lambda *argv: command(studies, *argv)}

    def one_line(program, argv, *words):
        error = programs[program](*argv).error
        assert error.isprintable() and [word for word in words if word not in error] == [], error
        return error

    return one_line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cmat.pt", "file"),
        ("MultiModalPromptLearner", "folder"),
        ("tests.jsonl", "pipe"),
        ("partial_test", "pipe"),
    ],
)
def test_run_does_not_write_through_links_or_wait_for_pipes(
    name, kind, one_line, eurosat, tiny, tmp_path
):
    """A confusion matrix was written elsewhere, and a pipe named tests.jsonl or partial_test was
    waited for.
    """
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    target = {"folder": tmp_path / "elsewhere", "file": tmp_path / "elsewhere/file"}
    path = tmp_path / "out" / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target[kind])
    one_line(
        "train", arguments(eurosat, tiny, tmp_path / "out", "TEST.COMPUTE_CMAT", True), str(path)
    )
    assert name in os.listdir(tmp_path / "out") and not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("link", "action"),
    [
        ("base2new", "tables"),
        ("studies", "tables"),
        ("studies/study/tables.md", "tables"),
        ("trials", "status"),
    ],
)
def test_study_does_not_read_or_write_through_a_link(link, action, one_line, tmp_path):
    """Whoever gives away the folder of a study could have files written elsewhere."""
    study = {
        "trainers": {"CoOp": "small"},
        "datasets": ["small_land"],
        "seeds": [1],
        "output": str(tmp_path / "out"),
    }
    study |= (
        {"choose": {"by": "few-shot validation", "keys": {"OPTIM.LR": [0.1, 0.2]}}}
        if link == "trials"
        else {}
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    for run in load(tmp_path / "study.yaml").runs() if link != "trials" else ():
        finish(run, 50.0)
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "out" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(tmp_path / "elsewhere/found")
    place.symlink_to(tmp_path / "elsewhere/found")
    before = sorted(tmp_path.rglob("*"))
    one_line("study", [action, tmp_path / "study.yaml"], str(place))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "name"), [("link", ""), ("link", "EuroSAT.zip.partial"), ("pipe", "unpacked")]
)
def test_preparation_does_not_write_through_links_or_wait_for_pipes(
    kind, name, one_line, publish, tmp_path
):
    publish("eurosat")
    path = tmp_path / "data/eurosat/.preparing" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(path)
    one_line("prepare", ["eurosat"], str(path))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_endless_log_is_refused(tmp_path, monkeypatch):
    """It filled the memory."""
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1/log.txt").symlink_to("/dev/zero")
    monkeypatch.setattr("sys.argv", ["parse_test_res.py", str(tmp_path)])
    with pytest.raises(UsageError, match=r"seed1/log.txt"):
        parse_test_res.main()
