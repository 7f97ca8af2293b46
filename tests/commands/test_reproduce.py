"""`tools/reproduce.py` on sets of checkpoints, beside a direct evaluation (see
test_published_checkpoints.py, too).
"""

import pytest
import torch
from finished import summarise
from published_files import save_published

from common.results import read_results
from studies import reproduce
from studies.plan import Study
from studies.study import Variant

pytestmark = pytest.mark.slow

HEAD = "| method | eurosat | average |\n| --- | --- | --- |\n"
YAML = "vit_b16_c2_ep5_batch4_2ctx"  # MaPLe's


@pytest.fixture
def run(reproduced, deep):
    """`run(METHOD, option, ...)` -> the ended command, on the checkpoints in tmp_path/set."""
    return lambda method, *options: reproduced(method, deep, *options)


def publish(trained, place, epoch):
    """A training run's prompts as the published code saves them: MaPLe's with all of the model, and
    no metadata.
    """
    (source,) = trained.glob("*/model.pth.tar-1")
    state = torch.load(source, weights_only=True)["state_dict"]
    if source.parent.name == "prompt_learner":  # CoOp's is of the prompts alone
        state["token_prefix"] = torch.zeros(3, 1, 8)
    else:
        state |= {"image_encoder.conv1.weight": torch.zeros(2), "logit_scale": torch.tensor(4.6)}
        state["prompt_learner.token_prefix"] = torch.zeros(3, 1, 8)
    save_published(place, state, epoch, source.parent.name, optimizer={}, val_result=None)


@pytest.mark.parametrize(
    "layout", ["base/seed1", f"train_base/eurosat/shots_16/MaPLe/{YAML}/seed1"]
)
def test_base_to_new(layout, run, finished, tmp_path):
    """The table has what a direct evaluation gives."""
    trained = finished("MaPLe")
    publish(trained, tmp_path / "set" / layout, 5)
    ended = run("maple")
    assert ended.status == 0, ended.errors
    assert f"eurosat, 16 shots, seed 1: {tmp_path}/set/{layout}\n" in ended.printed
    for classes, folder in (("base", trained), ("new", finished("MaPLe", "new", tests=trained))):
        accuracy = f"{read_results(folder).accuracy:.2f}"
        assert (
            f"## base2new, {classes}\n\n{HEAD}| MaPLe | {accuracy} | {accuracy} |" in ended.printed
        )
    assert (
        "| published | 82.28 | 75.14 | 78.55 |" in ended.printed
        and "do not compare" in ended.printed
    )
    assert (tmp_path / "out/MaPLe_base2new.md").read_text() in ended.printed


def test_cross_dataset(run, finished, tmp_path):
    depth = ["TRAINER.MAPLE.PROMPT_DEPTH", 3]
    publish(finished("MaPLe", "all", *depth), tmp_path / "set/seed1", 2)
    ended = run("MaPLe", "--protocol", "cross_dataset", "--epoch", 2)
    assert ended.status == 0, ended.errors
    (result,) = (tmp_path / "out").glob("crossdataset/evaluation/eurosat/*/*/seed1")
    assert read_results(result).epochs == 2
    # The same prompts on the same images
    accuracy = read_results(finished("MaPLe", "all", *depth)).accuracy
    assert f"| MaPLe | - | {accuracy:.2f} | {accuracy:.2f} |" in ended.printed
    alone = run("MaPLe", "--protocol", "cross_dataset", "--epoch", 2, "--source", "eurosat")
    assert alone.status == 0 and f"| MaPLe | {accuracy:.2f} | - |" in alone.printed, alone.errors


def test_prompts_of_mmrls_cross_dataset_are_not_those_of_base_classes(tmp_path):
    file = (
        tmp_path
        / "base2new/train_base/imagenet/shots_16/MMRL/vit_b16_cross_datasets/seed1/learner/model.pth.tar-5"
    )
    file.parent.mkdir(parents=True)
    file.touch()
    study = reproduce.study_of(reproduce.read_arguments(["MMRL", "--checkpoints", str(tmp_path)]))
    assert study.protocols == ("cross_dataset",) and study.prompts == {
        ("imagenet", 16, 1): file.parent.parent
    }


BASE2NEW = {"protocols": ("base2new",), "datasets": ("dtd",)}
DOMAINS = {"protocols": ("cross_dataset",), "source": "imagenet", "targets": reproduce.VARIANTS}


@pytest.mark.parametrize(
    ("settings", "cfg", "others"),
    [
        (
            BASE2NEW,
            "vit_b16_ctxv1",
            [{"backbone": "RN50"}, {"shots": (4,)}, {"cfg": "vit_b16_ep50_ctxv1"}],
        ),
        (
            DOMAINS,
            "vit_b16_ep50_ctxv1",
            [{"backbone": "RN50"}, {"cfg": "vit_b16_ctxv1"}, {"source": "food101"}],
        ),
    ],
    ids=["base2new", "domains"],
)
def test_published_figures_are_compared_with_those_of_the_same_settings(
    settings, cfg, others, tmp_path
):
    def tables(folder, **changed):
        given = settings | {"seeds": (1,), "output": tmp_path / folder} | changed
        study = Study((Variant("CoOp", "CoOp", given.pop("cfg", cfg)),), **given)
        missing = study.runs()[-1]
        return reproduce.compared_with_authors(
            summarise(study, lambda run: None if run == missing else 50.0)
        )

    (table,) = tables("same")
    assert {cell.text for cell in table.rows[0][1:]} == {"50.00", "-"}  # a test has failed
    assert [tables(str(number), **changed) for number, changed in enumerate(others)] == [[], [], []]


def test_sets_without_checkpoints_and_wrong_names(run, tmp_path):
    (tmp_path / "set/eurosat/base/seed1").mkdir(parents=True)  # empty
    for method, options, words in (
        ("MaPLe", [], "no checkpoints of MaPLe in"),
        ("MaPLe", ["--protocol", "cross_dataset"], "expected {dataset}/seed{seed}"),
        ("MaPLe", ["--checkpoints", tmp_path / "sett"], "which holds set; check --checkpoints"),
        (
            "MaPLe",
            ["--source", "imagenett"],
            "there is no dataset 'imagenett': did you mean imagenet?",
        ),
        ("MaPL3", [], "there is no method 'MaPL3': did you mean MaPLe?"),
    ):
        assert words in run(method, *options).error
    assert not (tmp_path / "out").exists()
