"""HiCroPL, ATPrompt, MMA++, DPC, SkipTuning, NLPrompt and TIMO refuse what cannot work in one line."""

import pytest
from drawn import arguments, section_pairs, sentences_of
from learned import NAMES
from marks import of_json, to_json
from published_files import save_published

from clip import load_backbone
from inference import export
from trainers.skiptuning import saved_name

pytestmark = pytest.mark.slow


def test_timo_has_twice_as_many_sentences_as_there_are_at_most(launch, eurosat, deep, tmp_path):
    options = ["DATASET.SENTENCES", sentences_of(NAMES, tmp_path), "TRAINER.TIMO.BETA", 9]
    options += ["OPTIM.MAX_EPOCH", 1]
    line = arguments(eurosat, deep, tmp_path / "run", *options, trainer="TIMO", config="small")
    assert "BETA is 9, for 3 sentences a class" in launch(*line).error


@pytest.mark.parametrize("method", ["HiCroPL", "MMApp"])
def test_a_class_without_sentences_is_named(method, launch, eurosat, deep, tmp_path):
    options = ["TRAINER.MMAPP.INPUT_PROMPTS", "cupl"] if method == "MMApp" else []
    to_json(tmp_path / "some.json", {NAMES[0]: ["one sentence"]})
    options += ["DATASET.SENTENCES", tmp_path / "some.json"]
    line = arguments(eurosat, deep, tmp_path / "run", *options, trainer=method, config="small")
    assert f"{NAMES[1]!r} has no sentence" in launch(*line).error


def test_what_is_behind_the_run_of_coop_is_in_the_results(launch, eurosat, deep, tmp_path):
    own = {"config": "small"}
    options = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1]
    launch.works(*arguments(eurosat, deep, tmp_path / "one", *options, trainer="CoOp", **own))
    options += ["TRAINER.COOP.OVER", tmp_path / "one", "TRAINER.COOP.TOPK", 2]
    launch.works(*arguments(eurosat, deep, tmp_path / "two", *options, trainer="DPC+CoOp", **own))
    results = [of_json(tmp_path / name / "results.json") for name in ("one", "two")]
    (first,), both = (result["data_use"]["fit"] for result in results)
    assert both == [first, first]


def test_published_skip_tuning_has_the_lower_blocks_of_the_backbone(
    launch, eurosat, deep, tmp_path
):
    state = {
        saved_name(name): value.half()
        for name, value in load_backbone(str(deep)).named_parameters()
        if name != "logit_scale"
    }
    options = ["--eval-only", "--model-dir", tmp_path / "published"]

    def tested(output):
        save_published(tmp_path / "published", state, saved_as="learnable_params")
        settings = section_pairs("SkipTuning", {"START_LAYER": 6})
        own = {"trainer": "SkipTuning", "config": "small", "options": options}
        return launch(*arguments(eurosat, deep, tmp_path / output, *settings, **own))

    state["image_encoder.transformer.resblocks.6.mlp.c_fc.bias"] += 1
    assert tested("first").status == 0
    learned_below = "text_encoder.transformer.resblocks.5.mlp.c_fc.bias"
    state[learned_below] += 1
    ended = tested("second")
    assert f"{learned_below} in " in ended.error and "is not the backbone's" in ended.error


OTHER_RUNS = {
    "of another method": ("NLPrompt", {}, "is a checkpoint of NLPrompt, not of CoOp"),
    "of another position": (
        "CoOp",
        {"CLASS_TOKEN_POSITION": "front"},
        "has CLASS_TOKEN_POSITION front, here end",
    ),
    "of other classes": (
        "CoOp",
        {"CSC": True, "CTX_INIT": "''"},
        "has a context for each of other classes",
    ),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_dpc_starts_from_no_other_run(name, launch, eurosat, deep, tmp_path):
    method, settings, words = OTHER_RUNS[name]

    def run(method, output, classes, settings):
        pairs = ["DATASET.SUBSAMPLE_CLASSES", classes, *section_pairs(method, settings)]
        own = {"trainer": method, "config": "small"}
        return launch(*arguments(eurosat, deep, tmp_path / output, *pairs, **own))

    assert run(method, "first", "base", settings).status == 0
    settings = {key: value for key, value in settings.items() if key != "CLASS_TOKEN_POSITION"}
    settings |= {"TOPK": 2, "OVER": tmp_path / "first"}
    assert words in run("DPC+CoOp", "run", "new", settings).error


def test_dpc_starts_from_an_exported_folder_of_its_own_weights(
    launch, command, eurosat, deep, tiny, tmp_path
):
    def run(method, output, backbone, *pairs):
        own = {"trainer": method, "config": "small"}
        return launch(*arguments(eurosat, backbone, tmp_path / output, *pairs, **own))

    assert run("CoOp", "first", deep).status == 0
    assert command(export, tmp_path / "first", "--to", tmp_path / "exported").status == 0
    pairs = section_pairs("DPC+CoOp", {"TOPK": 2, "OVER": tmp_path / "exported"})
    assert run("DPC+CoOp", "same", deep, *pairs).status == 0
    assert "prompts for other weights" in run("DPC+CoOp", "other", tiny, *pairs).error


def test_an_epoch_of_nlprompt_has_steps_where_neither_part_fills_a_batch(build, monkeypatch):
    trainer = build("NLPrompt", options=["DATALOADER.TRAIN_X.BATCH_SIZE", 8])
    loader = trainer.train_loader_x
    agrees = [True] * 5 + [False] * 7
    monkeypatch.setattr(trainer.method, "agreeing", lambda loader: agrees)
    batches = list(trainer.method.batches(loader))
    assert [(batch["wrong"], len(batch["label"])) for batch in batches] == [(False, 5), (True, 7)]
