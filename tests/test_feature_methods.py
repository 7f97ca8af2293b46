"""Methods on features: what they compute once, what they keep, other classes, features of a trained
run.
"""

import pytest
import torch
import torch.nn.functional as F
from drawn import differing, prompts_of, write_eurosat
from feature_runs import METHODS, images_of, maker
from marks import one_line, thorough_but

from datasets.eurosat import EuroSAT
from trainers.base.features import CachedFeatures, Support

pytestmark = pytest.mark.slow

TRANSFERRING = [name for name, kind in METHODS.items() if kind.transfers]
OTHERS = [name for name in METHODS if name not in TRANSFERRING]


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    return maker(eurosat, tiny, tmp_path)


@pytest.mark.parametrize("method", thorough_but(("CLAP", "GDA", "LinearProbe", "ProLIP"), METHODS))
def test_a_checkpoint_gives_the_logits_of_its_run(method, make, tmp_path):
    """Also if the classes have different numbers of training images."""
    write_eurosat(tmp_path, ["red", "blue lake", "grey"], train=[1, 4, 4])
    first = make(method, "DATASET.NUM_SHOTS", -1, root=tmp_path)
    first.train()
    assert first.method.support.labels.bincount().tolist() == [1, 4, 4]
    first.set_model_mode("eval")
    images = images_of(first)
    expected = first.model_inference(images)
    second = make(method, "DATASET.NUM_SHOTS", -1, root=tmp_path, output="test")
    second.load_model(str(tmp_path / "run"))
    second.set_model_mode("eval")
    assert expected.isfinite().all() and torch.equal(second.model_inference(images), expected)
    folder = tmp_path / "run" / first.method.saved_as
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint",
        f"model.pth.tar-{first.max_epoch}",
    ]


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
    options = [
        "OPTIM.NAME",
        "adam",
        "OPTIM.ADAM_EPS",
        1e-4,
        "OPTIM.WEIGHT_DECAY",
        0.0,
        "OPTIM.LR",
        1e-5,
    ]
    options += [f"{name}.STEPS", 6, f"{name}.AUGMENT_EPOCH", 2, f"{name}.LAMBDA", 0.25]
    in_fp32 = make(method, *options, output="fp32")
    in_fp32.train()
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
    moved, in_fp32 = (
        (head.start - next(head.parameters())).norm()
        for head in (trainer.method.head, in_fp32.method.head)
    )
    assert moved > 2 * in_fp32
    found.data.fill_(100)
    assert trainer.method.head.half().squares().isfinite()  # more than fp16 can hold


def test_of_the_epochs_before_the_last_a_run_keeps_the_best_only(make, monkeypatch, tmp_path):
    trainer = make("CLIPAdapter", "OPTIM.MAX_EPOCH", 4, "TEST.FINAL_MODEL", "best_val")
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
    folder = tmp_path / "run" / trainer.method.saved_as
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model-best.pth.tar"]
    best = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 60.0)

    resumed = make("CLIPAdapter", "OPTIM.MAX_EPOCH", 4, "TEST.FINAL_MODEL", "best_val")
    resumed.before_train()
    assert (resumed.start_epoch, resumed.best_result) == (2, 60.0)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model-best.pth.tar"]


def test_clap_resumes_with_the_weights_of_its_constraint(make, tmp_path):
    """Those of the adaptative variant change after each epoch; a resumed run began with the first
    ones.
    """
    options = (
        "TRAINER.CLAP.CONSTRAINT",
        "l2_adaptative",
        "OPTIM.MAX_EPOCH",
        6,
        "TRAIN.CHECKPOINT_FREQ",
        3,
    )
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


@pytest.mark.parametrize("method", thorough_but(("TipAdapter", "CLIPAdapter"), TRANSFERRING))
def test_new_classes_are_tested_with_what_was_learned_on_base_classes(method, make, tmp_path):
    base = make(method, "DATASET.SUBSAMPLE_CLASSES", "base")
    base.train()
    new = make(method, "DATASET.SUBSAMPLE_CLASSES", "new", output="new")
    new.load_model(str(tmp_path / "run"))
    images = images_of(new)
    logits = new.model_inference(images)
    zero_shot = make(
        "ZeroshotCLIP", "DATASET.SUBSAMPLE_CLASSES", "new", output="zero"
    ).model_inference(images)
    same = torch.allclose(logits, zero_shot * 100 / new.model.scale, atol=1e-3)
    assert same == method.startswith("Tip")  # no votes for new classes


@pytest.mark.parametrize("method", thorough_but(("CLAP", "LinearProbe"), OTHERS))
def test_some_of_the_learned_classes_keep_their_weights(method, make, tmp_path):
    """As those of ImageNet-A and -R, in any order."""
    write_eurosat(tmp_path, ["white snow", "red"])
    every = make(method)
    some = make(method, root=tmp_path, output="some")
    every.train()
    some.load_model(str(tmp_path / "run"))
    images = images_of(some)
    places = [every.method.class_names.index(name) for name in some.method.class_names]
    for trainer in (every, some):
        trainer.set_model_mode("eval")
    torch.testing.assert_close(
        some.model_inference(images), every.model_inference(images)[:, places]
    )


def test_gda_of_few_images_inverts_their_covariance_and_not_its_rounding_error(make):
    """Features that vary in 8 of 64 dimensions, and by a part of 1e-4 in the others. The expected
    weights are the formula in fp32, in which `pinv` leaves out the small eigenvalues; in double
    precision it inverted them.
    """
    trainer = make(
        "GDA", "TRAINER.GDA.SETTING", "base2new", "TRAINER.GDA.K", 6, "TRAINER.GDA.ALPHA", 1.0
    )
    labels = torch.arange(6).repeat(4)
    random = torch.manual_seed(0)
    views = (torch.randn(24, 8, generator=random) @ torch.randn(8, 64, generator=random))[None]
    views += 1e-4 * torch.randn(1, 24, 64, generator=random)
    trainer.method.begin(Support(views.to(trainer.device), labels.to(trainer.device)))
    rows = torch.nn.functional.normalize(views[0], dim=1)
    means = torch.stack([rows[labels == label].mean(dim=0) for label in range(6)])
    covariances = [torch.cov(rows[labels == label].T) for label in range(6)]
    weights = torch.linalg.pinv(torch.stack(covariances).mean(dim=0)) @ means.T
    biases = -torch.log(torch.tensor(6.0)) - torch.diagonal(means @ weights) / 2
    for found, expected in ((trainer.method.head.W, weights), (trainer.method.head.b, biases)):
        torch.testing.assert_close(
            found.cpu(), expected, rtol=0, atol=1e-3 * expected.abs().max().item()
        )


def test_gda_of_one_view_of_a_class_is_refused(make):
    trainer = make("GDA", "TRAINER.GDA.SETTING", "base2new", "TRAINER.GDA.K", 2)
    with one_line("GDA has 6 views of images"):  # a class has no covariance
        trainer.method.begin(
            Support(
                torch.randn(1, 6, 64, device=trainer.device), torch.arange(6, device=trainer.device)
            )
        )


def test_gda_that_keeps_no_views_is_zero_shot_clip_where_classes_are_new(make, tmp_path):
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


def test_features_are_computed_once_for_all_methods(make, tmp_path, monkeypatch):
    computed = []
    encode_some = CachedFeatures.encode_some

    def encode_and_count(self, places):
        if places:
            computed.append(places)
        encode_some(self, places)

    monkeypatch.setattr(CachedFeatures, "encode_some", encode_and_count)
    trained = []
    for output, method in (("first", "TipAdapter"), ("again", "TipAdapter"), ("other", "GDA")):
        trained.append(make(method, "CACHE", str(tmp_path / "cache"), output=output))
        trained[-1].train()
        assert len(computed) == 3  # training, validation and test images
    assert differing(*map(prompts_of, trained[:2])) == []


def test_settings_chosen_by_images_are_recorded_and_given_ones_kept(make):
    whats = [choice.what for choice in make("TipAdapter").method.choices]
    assert whats == ["TRAINER.TIPADAPTER.ALPHA", "TRAINER.TIPADAPTER.BETA"]
    half = make("TipAdapter", "TRAINER.TIPADAPTER.ALPHA", 2.0, output="half")
    # Of 4,000 cells
    assert [(choice.what, choice.trials) for choice in half.method.choices] == [(whats[1], 200)]
    given = make(
        "TipAdapter",
        "TRAINER.TIPADAPTER.ALPHA",
        2.0,
        "TRAINER.TIPADAPTER.BETA",
        3.0,
        output="given",
    )
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
    monkeypatch.setattr(EuroSAT, "val_is_test", True)
    write_eurosat(tmp_path, ["red", "blue lake"], train=6, test=6)
    trainer = make("TipAdapter", "DATASET.NUM_SHOTS", shots, root=tmp_path)
    assert [item.label for item in trainer.method.val_images].count(0) == images


def test_batches_of_an_epoch(make):
    """CLAP draws from all views, as many as there are images; others take one view of each
    image.
    """
    labels = torch.arange(10) % 6
    views = torch.arange(40.0).reshape(4, 10, 1).expand(-1, -1, 64)
    for method, size, once in (("CLAP", 12, False), ("TaskRes", 10, True)):
        trainer = make(method, "DATALOADER.TRAIN_X.BATCH_SIZE", 12, output=method)
        trainer.method.begin(Support(views.to(trainer.device), labels.to(trainer.device)))
        batch = next(iter(trainer.method.feature_batches))
        found = batch["label"].tolist()
        assert len(found) == size and (sorted(found) == sorted(labels.tolist())) == once
        rows = batch["img"].feature[:, 0].long()
        # Of different views
        assert (rows % 10 % 6).tolist() == found and len((rows // 10).unique()) > 1
