"""`merge` in a study: models of its seeds become one, which is tested as they are."""

import pytest
import torch
import yaml
from finished import InThisProcess
from marks import of_json

from common.errors import UsageError
from common.results import read_results
from runs import merge as merge_command
from studies import command as study_command
from studies.study_file import load

RANK = "TRAINER.CLIPLORA.R"
SHORT = {"OPTIM.MAX_EPOCH": 1, "DATALOADER.NUM_WORKERS": 0, "INPUT.SIZE": "(32, 32)"}
OF_LORA = {RANK: 3, "TRAINER.CLIPLORA.N_ITERS": 4, "TRAINER.CLIPLORA.PREC": "fp32"}


@pytest.fixture
def write(tmp_path):
    """`write(trainers, key=value, ...)`: the file of a study of two seeds."""

    def write(trainers, **settings):
        usual = {"protocols": "few_shot", "datasets": ["eurosat"], "seeds": [1, 2], "shots": 2}
        usual |= {"output": str(tmp_path / "output"), "trainers": trainers}
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(usual | settings, sort_keys=False))
        return file

    return write


@pytest.fixture
def study(write, eurosat, tiny, command, monkeypatch):
    """`study(hows, ...)`: a study of CLIPLoRA, and a function for its commands, whose runs take
    place in this process.
    """
    monkeypatch.setattr(study_command, "choose_executor", lambda study, args: InThisProcess(1))

    def study(hows, **settings):
        one = {"config": "small", "merge": hows, "overrides": SHORT | OF_LORA}
        images = {"root": str(eurosat), "backbone": str(tiny)}
        file = write({"CLIPLoRA": one}, **images | settings)
        return load(file), lambda name, *options: command(study_command, name, file, *options)

    return study


@pytest.mark.thorough
def test_seeds_become_rows_of_the_tables(study):
    content, launched = study(["mean", "greedy", "wise-ft:0.5"], protocols=["few_shot", "base2new"])
    planned = launched("run", "--dry-run").printed
    assert planned.count("python tools/merge.py") == 8 and planned.count("--how mean") == 2
    done = launched("run")
    assert done.status == 0, done
    tables = launched("tables").printed
    for name in ("mean of seeds", "greedy of seeds", "wise-ft:0.5"):
        rows = [line for line in tables.splitlines() if line.startswith(f"| CLIPLoRA ({name})")]
        assert len(rows) > 3 and not any("n=" in row for row in rows)
    soup, *_ = content.merges
    assert of_json(soup.file)["settings"][RANK] == "6"
    results = read_results(soup.tests[0].folder)
    assert results.n_test == read_results(soup.members[0].folder).n_test
    assert "(mean of seeds)" not in tables.partition("Tests")[2]
    greedy = next(merge for merge in content.merges if merge.how.name == "greedy")
    (record,) = read_results(greedy.tests[0].folder).card.choose
    assert (record.what, record.split, record.test_images) == ("merge", "val", 0)


def test_a_merge_goes_on_after_a_kill_and_is_made_once(study, monkeypatch):
    content, launched = study("mean")
    (merge,) = content.merges
    whole = merge_command.main

    def killed(argv):
        whole(argv)
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_command, "main", killed)
    assert launched("run").status == 130 and not merge.file.exists()
    monkeypatch.setattr(merge_command, "main", whole)
    assert launched("run").status == 0
    results = merge.tests[0].folder / "results.json"
    before = results.stat().st_mtime_ns
    monkeypatch.setattr(merge_command, "main", None)
    assert launched("run").status == 0 and results.stat().st_mtime_ns == before
    monkeypatch.setattr(merge_command, "main", whole)
    checkpoint = next(merge.members[0].folder.glob("*/model.pth.tar-*"))
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["layer_0.q_proj.w_lora_B"] += 1  # as if it had been trained again
    torch.save(content, checkpoint)
    assert launched("run").status == 0
    assert results.stat().st_mtime_ns > before


def test_an_error_of_a_merge_is_that_of_its_run(study, monkeypatch):
    content, launched = study("mean")

    def refused(argv):
        raise UsageError("the models differ", "train them again")

    monkeypatch.setattr(merge_command, "main", refused)
    done = launched("run")
    test = content.merges[0].tests[0].folder
    assert done.status == 1 and f"{test}: UsageError: the models differ: train" in done.printed
    assert "the models differ" in launched("status").printed


def test_a_choice_of_models_needs_validation_images(study, imagenet):
    _, launched = study("greedy", datasets=["imagenet"], root=str(imagenet))
    assert "validation images of imagenet are test images: use merge: mean" in launched("run").error
