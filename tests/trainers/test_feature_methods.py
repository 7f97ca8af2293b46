"""Methods on features: what they compute once, what they keep, other classes, features of a trained
run.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from caching import IMAGES, OFF, values
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from drawn import METHODS, differing, prompts_of, write_eurosat
from feature_runs import images_of, maker
from marks import one_line, thorough_but
from torch import nn

from trainers import methods
from trainers.base import Method
from trainers.base.feature_method import FeatureMethod
from trainers.base.features import Support
from trainers.base.prompted import PromptedCLIP
from trainers.coop import CoOp

pytestmark = pytest.mark.slow


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    return maker(eurosat, tiny, tmp_path)


@pytest.mark.parametrize("method", ["ProLIP", "RLA"])
@pytest.mark.parametrize("precision", thorough_but(("fp16",), ("fp32", "fp16")))
def test_validation_chooses_the_learning_rate_and_lambda_of_a_projection(
    method, precision, make, monkeypatch
):
    grid = [(1e-8, 1.0), (0.03, 10.0), (0.03, 0.0), (0.03, 0.0), (1e-8, 0.0)]
    monkeypatch.setattr("trainers.prolip.GRID", grid)
    name = f"TRAINER.{method.upper()}"
    tried = []
    steps = (f"{name}.STEPS", 3, f"{name}.AUGMENT_EPOCH", 2)

    def learned(rate, weight):
        pairs = f"{name}.LAMBDA", weight, "OPTIM.LR", rate, "OPTIM.NAME", "adam"
        pairs += "OPTIM.ADAM_EPS", 1e-4, f"{name}.PREC", precision
        trainer = make(method, *steps, *pairs, output=f"{rate} {weight} {len(tried)}")
        trainer.train()
        return trainer, prompts_of(trainer)

    for rate, weight in grid:
        tried.append(learned(rate, weight))
    right = [trainer.method.correct() for trainer, _ in tried]
    chosen, prompts = learned(0.5, "validation")
    assert len({*right}) > 1 and chosen.method.correct() == max(right)
    assert differing(prompts, tried[right.index(max(right))][1]) == []
    assert [choice.what for choice in chosen.method.choices] == [f"{name}.LAMBDA", "OPTIM.LR"]
    record = chosen.method.choices[0]
    assert (record.images, record.test_images) == (24, 0) and tried[0][0].method.choices == []


@pytest.mark.parametrize("method", ["ProLIP", "RLA"])
def test_prec_fp16_learns_a_projection_in_the_arithmetic_of_the_published_code(method, make):
    """All of it in fp16: most of Adam's second moments are 0, and the steps larger than in fp32."""
    name = f"TRAINER.{method.upper()}"
    options = ["OPTIM.NAME", "adam", "OPTIM.ADAM_EPS", 1e-4, "OPTIM.WEIGHT_DECAY", 0.0]
    options += ["OPTIM.LR", 1e-5, f"{name}.STEPS", 6, f"{name}.AUGMENT_EPOCH", 2]
    options += [f"{name}.LAMBDA", 0.25]
    trainer = make(method, *options, f"{name}.PREC", "fp16")
    start = trainer.method.head.start.half()
    projection = trainer.method.head.vit_proj.detach().half()
    text = trainer.model.class_texts.half()
    trainer.train()
    learned = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([learned], lr=1e-5, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    for step in range(1, 7):
        x = trainer.method.support.views[step % 2].half()
        x = x @ learned if method == "ProLIP" else F.linear(x @ projection, learned)
        logits = 100.0 * F.normalize(x, dim=-1) @ text.T
        squares = F.mse_loss(learned, start, reduction="sum")
        optimiser.zero_grad()
        (F.cross_entropy(logits, trainer.method.support.labels) + 0.25 * squares).backward()
        optimiser.step()
        schedule.step()
    (found,) = trainer.method.head.parameters()
    assert found.dtype == torch.float32 and torch.equal(found, learned.float())
    found.data.fill_(100)
    assert trainer.method.head.half().squares().isfinite()  # more than fp16 can hold


def test_of_the_epochs_before_the_last_a_run_keeps_the_best_only(make, monkeypatch, tmp_path):
    line = "CLIPAdapter", "OPTIM.MAX_EPOCH", 4, "TEST.FINAL_MODEL", "best_val"
    trainer = make(*line)
    run_epoch = trainer.run_epoch
    results = iter((50.0, 60.0, 40.0))

    def killed():
        run_epoch()
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "run_epoch", killed)
    monkeypatch.setattr(trainer, "test", lambda split: next(results))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    folder = tmp_path / "run" / trainer.method.checkpoint_folder
    best = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 60.0)
    resumed = make(*line)
    resumed.before_train()
    assert (resumed.start_epoch, resumed.best_result) == (2, 60.0)
    assert {path.name for path in folder.iterdir()} == {"checkpoint", "model-best.pth.tar"}


def test_clap_resumes_with_the_weights_of_its_constraint(make, tmp_path):
    """Those of the adaptative variant change after each epoch; a resumed run began with the first
    ones.
    """
    constraint = "TRAINER.CLAP.CONSTRAINT", "l2_adaptative"
    options = *constraint, "OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_FREQ", 3
    whole = make("CLAP", *options)
    whole.train()
    (tmp_path / "run/adapter/model.pth.tar-6").unlink()
    (tmp_path / "run/adapter/checkpoint").write_text("model.pth.tar-3\n")
    resumed = make("CLAP", *options)
    resumed.train()
    assert resumed.start_epoch == 3 and differing(prompts_of(whole), prompts_of(resumed)) == []


def test_clap_adapts_its_weights_by_squared_distances_also_with_a_constraint_of_cosines(make):
    trainer = make("CLAP", "TRAINER.CLAP.CONSTRAINT", "l2_cosine_adaptative", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    apart = trainer.method.head.prototypes.detach() - trainer.method.head.base_text_features
    torch.testing.assert_close(trainer.method.rho, apart.square().sum(dim=1))


def test_gda_of_one_view_of_a_class_is_refused(make):
    trainer = make("GDA", "TRAINER.GDA.SETTING", "base2new", "TRAINER.GDA.K", 2)
    views = torch.randn(1, 6, 64, device=trainer.device)
    with one_line("GDA has 6 views of images"):  # a class has no covariance
        trainer.method.begin(Support(views, torch.arange(6, device=trainer.device)))


def test_gda_without_views_is_zero_shot_clip_on_new_classes(make, tmp_path):
    make("GDA", "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.GDA.SETTING", "few_shots").train()
    every = make("GDA", output="all")
    every.load_model(str(tmp_path / "run"))
    images = images_of(every)
    zero_shot = make("ZeroshotCLIP", output="zero").model_inference(images)
    torch.testing.assert_close(
        every.model_inference(images), zero_shot * 100 / every.model.scale, rtol=0, atol=1e-3
    )


def test_views_depend_on_the_seed_and_not_on_workers_or_random_numbers_drawn_before(make):
    found = []
    for seed, workers in ((1, 0), (1, 2), (2, 0)):
        trainer = make(
            "GDA", "SEED", seed, "DATALOADER.NUM_WORKERS", workers, output=f"{seed}{workers}"
        )
        torch.rand(seed + workers)
        found.append(trainer.method.features_of(trainer.dm.dataset.test[:5], 3).views)
    assert found[0].shape == (3, 5, 64)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)


def test_settings_chosen_by_images_are_recorded_and_given_ones_kept(make):
    whats = [choice.what for choice in make("TipAdapter").method.choices]
    assert whats == ["TRAINER.TIPADAPTER.ALPHA", "TRAINER.TIPADAPTER.BETA"]
    half = make("TipAdapter", whats[0], 2.0, output="half")
    # Of 4,000 cells
    assert [(choice.what, choice.trials) for choice in half.method.choices] == [(whats[1], 200)]
    given = make("TipAdapter", whats[0], 2.0, whats[1], 3.0, output="given")
    given.dm.dataset._val = None
    assert given.method.choices == []
    given.train()
    head = given.model.prompt_learner
    assert (head.alpha.item(), head.beta.item()) == (2, 3)
    lacking = make("GDA", output="lacking")
    lacking.dm.dataset._val = None
    with one_line("no validation images for the choice of ALPHA: set TRAINER.GDA.ALPHA"):
        lacking.train()


@pytest.mark.parametrize(("shots", "images"), [(2, 2), (5, 4), (-1, 6)])
def test_few_of_imagenets_test_images_choose_settings(shots, images, make, tmp_path, monkeypatch):
    """At most four of each class, as in CoOp's code: the validation images of that dataset are its
    test images.
    """
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "val_is_test", True)
    write_eurosat(tmp_path, ["red", "blue lake"], train=6, test=6)
    trainer = make("TipAdapter", "DATASET.NUM_SHOTS", shots, root=tmp_path)
    assert [item.label for item in trainer.method.val_images].count(0) == images


@pytest.mark.parametrize("method, size, all_views", [("CLAP", 12, True), ("TaskRes", 10, False)])
def test_an_epoch_draws_views_with_their_labels(method, size, all_views, make):
    """CLAP draws from the views of all images; other methods take one view of each image."""
    trainer = make(method, "DATALOADER.TRAIN_X.BATCH_SIZE", 12)
    labels = torch.arange(10) % 6
    views = torch.arange(40.0).reshape(4, 10, 1).expand(-1, -1, 64)
    trainer.method.begin(Support(views.to(trainer.device), labels.to(trainer.device)))
    batch = next(iter(trainer.method.feature_batches))
    drawn = batch["img"].feature[:, 0].long().cpu()
    images = drawn % 10
    assert batch["label"].tolist() == labels[images].tolist() and len(drawn) == size
    assert len(torch.unique(drawn // 10)) > 1
    assert (sorted(images.tolist()) != [*range(10)]) == all_views


@pytest.mark.slow
def test_residuals_of_a_start_are_added_to_the_texts_of_the_run(make, tmp_path):
    make("TaskRes", output="start").train()
    (file,) = (tmp_path / "start").glob("*/model.pth.tar-2")
    head = make(
        "TaskRes", "MODEL.INIT_WEIGHTS", str(file), "DATASET.TEMPLATE", "a bad photo of a {}."
    ).method.head
    own = make("TaskRes", "DATASET.TEMPLATE", "a bad photo of a {}.", output="own").method.head
    start = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(head.base_text_features, own.base_text_features)
    assert not torch.equal(head.base_text_features.cpu(), start["base_text_features"])
    assert torch.equal(head.text_feature_residuals.cpu(), start["text_feature_residuals"])


@pytest.mark.slow
def test_votes_for_learned_classes_are_kept_in_a_test_on_all(make, tmp_path, capsys):
    base = make("TipAdapter", "DATASET.SUBSAMPLE_CLASSES", "base", output="base")
    base.train()
    every = make("TipAdapter", output="all")
    every.load_model(str(tmp_path / "base"))
    assert "The prompts were learned on 3 of these 6 classes" in capsys.readouterr().out
    images = images_of(every)
    head = every.method.head
    votes = every.model_inference(images)
    known = [every.method.class_names.index(name) for name in base.method.class_names]
    others = [label for label in range(6) if label not in known]
    assert torch.allclose(votes[:, known], base.model_inference(images), atol=1e-4)
    assert head.values[:, others].abs().sum() == 0 < head.values[:, known].abs().sum()


TEXT_ONLY = {"CoOp", "CoCoOp", "KgCoOp", "NLPrompt", "ProGrad", "TCP"}
ALL = {"ZeroshotCLIP", "LinearProbe", *METHODS}


@pytest.mark.parametrize(
    "method", thorough_but(("CoOp", "CoCoOp", "MPL", "UPT", "CLIPLoRA"), sorted(ALL))
)
def test_methods_without_vision_prompts_read_each_image_once(method, cached, deep, work, kept):
    computed = values(cached(method, *OFF, backbone=deep))
    assert torch.equal(values(cached(method, backbone=deep)), computed)
    work.clear()
    trainer = cached(method, backbone=deep)
    assert torch.equal(values(trainer), computed)
    assert trainer.n_test == len(computed) == IMAGES
    if method in {"ZeroshotCLIP", *TEXT_ONLY} or issubclass(methods()[method], FeatureMethod):
        assert work == [1] and len(kept()) == 1
    else:
        assert not kept()


class Adapted(PromptedCLIP):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = nn.Parameter(torch.ones(self.clip.visual.output_dim))

    def of_tower(self, tower):
        return super().of_tower(replace(tower, feature=tower.feature + self.shift))


class Flipped(PromptedCLIP):
    def image_output(self, images):
        return super().image_output(images.flip(-1) if isinstance(images, torch.Tensor) else images)


@pytest.fixture
def mine(monkeypatch):
    """`mine(own)` registers CoOp with these attributes as the method "Mine"."""
    return lambda own: monkeypatch.setitem(
        TRAINER_REGISTRY._obj_map, "Mine", type("Mine", (CoOp,), own)
    )


DEPTHS = ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 0, "TRAINER.IVLP.PROMPT_DEPTH_TEXT", 2]
# A method, its settings, attributes of the user's own, and the number of files with CoOp's
FILES = {
    "usual": ("ZeroshotCLIP", [], {}, 1),
    "no vision prompts": ("IVLP", DEPTHS, {}, 1),
    "adapter": ("Mine", [], {"Model": Adapted}, 1),
    "model": ("Mine", [], {"Model": Flipped}, 2),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_method_has_its_own_features_if_it_reads_images_itself(case, cached, work, kept, mine):
    method, options, own, files = case
    mine(own)
    values(cached("CoOp"))
    computed = values(cached(method, *options, *OFF))
    assert torch.equal(values(cached(method, *options)), computed)
    work.clear()
    assert torch.equal(values(cached(method, *options)), computed)
    assert work == [1] and len(kept()) == files


@pytest.mark.parametrize(
    "own",
    [
        {"model_inference": lambda self, images: Method.model_inference(self, images.flip(-1))},
        {"parse_batch": lambda self, batch: (batch["img"].flip(-1), batch["label"])},
    ],
)
def test_new_method_with_its_own_reading_of_images_is_refused(own, cached, mine):
    mine(own)
    with one_line("this method reads the images: unset it"):
        values(cached("Mine"))


def test_shuffled_tests_are_not_kept(cached, kept):
    values(cached("CoOp", "DATALOADER.TEST.SAMPLER", "RandomSampler"))
    assert not kept()


def test_training_is_the_same_when_each_epoch_is_validated(cached):
    """A loader that does not run also draws its number from the random generator."""
    learned = []
    for output, cache in (("a", OFF), ("b", ()), ("c", ())):
        trainer = cached(
            "CoOp", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, *cache, output=output
        )
        trainer.train()
        learned.append(prompts_of(trainer))
    assert differing(*learned[:2]) == differing(*learned[1:]) == []
