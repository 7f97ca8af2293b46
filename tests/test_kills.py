"""`make kill`: a few of its kills, and what its comparison reports."""

import json
import signal
from collections import Counter

import pytest
import torch
from dassl.utils import load_checkpoint
from drawn import arguments
from kills.__main__ import table
from kills.chains import Tally, kill_at_random
from kills.subjects import content, differences, subjects
from serving import serving


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["CoOp", "prepare", "export"])  # of a study, tests/test_cluster.py kills a part
def test_commands_killed_at_random_moments_have_the_same_results(name, tmp_path, random_seed):
    (tmp_path / "shared").mkdir()
    with serving({}) as server:
        (subject,) = (one for one in subjects(tmp_path / "shared", server) if one.name == name)
        tally = kill_at_random(subject, {signal.SIGKILL: 1, signal.SIGTERM: 1}, tmp_path, random_seed)
    # A command that ends before it is killed is another chain.
    assert tally.wrong == [] and tally.kills.total() == 2 and tally.chains >= 1


@pytest.fixture
def finished(launch, eurosat, tiny, tmp_path):
    """The folder of a finished run."""
    assert launch(*arguments(eurosat, tiny, tmp_path / "out")).status == 0
    return tmp_path / "out"


def test_every_difference_is_reported(finished):
    before = content(finished)
    assert differences(before, content(finished)) == []
    folder, log = finished / "MultiModalPromptLearner", finished / "log.txt-2024-01-01-00-00-00"  # of a killed run
    checkpoint = load_checkpoint(str(folder / "model.pth.tar-2"))
    checkpoint["state_dict"]["prompt_learner.ctx"][0, 0] += 1e-6
    for name in ("model.pth.tar-1", "model.pth.tar-2"):
        torch.save(checkpoint, folder / name)
    results = json.loads((finished / "results.json").read_text())
    changed = results | {"accuracy": results["accuracy"] + 0.01, "date": "later"}
    (finished / "results.json").write_text(json.dumps(changed))
    for file in (log, finished / ".config.yaml.99.partial", finished / ".lock"):
        file.touch()
    (finished / "empty").mkdir()
    (finished / "config.yaml").unlink()
    assert set(differences(before, content(finished))) == {
        "different: MultiModalPromptLearner/model.pth.tar-2",
        "different: results.json",
        "left over: MultiModalPromptLearner/model.pth.tar-1",
        "left over: .config.yaml.99.partial",
        "left over: .lock",
        "left over: empty/",
        "missing: config.yaml",
    }


def test_table_counts_kills_and_chains():
    one = Tally(Counter({signal.SIGKILL: 3, signal.SIGTERM: 1}), chains=2)
    *_, last = table({"train": one, "study": Tally(chains=1, wrong=["folder: left over: .lock"])}).splitlines()
    assert last.split() == ["all", "3", "1", "3", "2"]
