"""Test-time methods as runs: they resume inside a test, start from learned prompts, and predict
what they test.
"""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import make_cfg
from learned import NAMES, own_test, rows_of
from marks import of_json, one_line, thorough_but
from PIL import Image

from inference import predict
from inference.load import load
from inference.options import LoadOptions
from trainers import methods
from trainers.base import partial
from trainers.base.test_time import ViewsMethod, entropies, most_confident
from trainers.mta import mean_shift

pytestmark = pytest.mark.slow

METHODS = [name for name, method in methods().items() if issubclass(method, ViewsMethod)]
FEW = {"VIEWS": 6, "PREC": "fp32"}


@pytest.fixture(autouse=True)
def _partial_results_of_each_image(monkeypatch):
    monkeypatch.setattr(partial, "SECONDS", 0)


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    """`make("TPT", KEY, VALUE, ..., STEPS=2)` -> a trainer on 24 test images with six views;
    keywords are its own.
    """

    def make(method, *pairs, output="run", **settings):
        section = methods()[method].section()
        own = {f"TRAINER.{section}.{key}": value for key, value in (FEW | settings).items()}
        set_random_seed(1)
        pairs = [*(item for pair in own.items() for item in pair), *pairs]
        trainer = build_trainer(make_cfg(method, eurosat, tiny, tmp_path / output, *pairs))
        trainer.set_model_mode("eval")
        return trainer

    return make


def outputs(trainer) -> torch.Tensor:
    """The logits of a test."""
    with torch.no_grad():
        logits, labels = zip(*trainer.test_outputs(trainer.test_loader), strict=True)
    items = trainer.test_loader.dataset.data_source
    assert torch.cat(labels).tolist() == [item.label for item in items]
    return torch.cat(logits)


# ---------------------------------------------------------------- a test that resumes


def interrupted(trainer, after: int) -> None:
    """A test that ends while it computes the answer for the image after these."""
    answer = trainer.method.logits_of_features
    left = iter(range(after))

    def answered(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return answer(*arguments)

    trainer.method.logits_of_features = answered
    with pytest.raises(KeyboardInterrupt):
        outputs(trainer)


@pytest.mark.parametrize(
    "method", thorough_but(["TPT", "DMN"], ["TPT", "TDA", "DMN", "BoostAdapter"])
)
def test_killed_test_resumes_and_ends_identically(method, make):
    whole = outputs(make(method, output="whole"))
    interrupted(make(method), 9)
    interrupted(make(method), 5)
    resumed = make(method)
    computed = []
    answer = resumed.method.logits_of_features
    resumed.method.logits_of_features = lambda *arguments: computed.append(1) or answer(*arguments)
    assert torch.equal(outputs(resumed), whole)
    assert len(computed) == len(whole) - 14


def test_training_images_in_the_memory_of_dmn_are_recorded(make):
    without = outputs(make("DMN"))
    trainer = make("DMN", output="other", SUPPORT=True)
    assert not torch.equal(outputs(trainer), without)
    rows, filled = trainer.method.support
    labels = [item.label for item in trainer.method.images.dataset.train_x]
    assert filled.sum(dim=1).tolist() == [labels.count(label) for label in range(6)]
    assert torch.allclose(rows[filled].norm(dim=1), torch.ones(len(labels)), atol=1e-3)
    (phase,) = trainer.method.inherited_phases
    assert phase.labels == phase.images == len(labels) and phase.split == "train"
    trainer.method.images = None  # as in a prediction
    del trainer.method.support
    with one_line("DMN with SUPPORT reads the training images of a run", "SUPPORT False"):
        trainer.method.logits_of_features(torch.randn(6, 64), trainer.method.new_state())


def test_unwritten_state_does_not_count(make, tmp_path):
    """The process may end between the file of the logits and the one of the state."""
    whole = outputs(make("TDA", output="whole"))
    interrupted(make("TDA"), 6)
    state = tmp_path / "run/partial_test/state.safetensors"
    before = state.read_bytes()
    interrupted(make("TDA"), 1)
    state.write_bytes(before)
    assert torch.equal(outputs(make("TDA")), whole)


def change(name, change):
    def harm(folder):
        content = bytearray((folder / name).read_bytes())
        (folder / name).write_bytes(change(content) or content)

    return harm


HARMS = {  # `other settings`: the test has them
    "a flipped bit": change("logits", lambda content: content.__setitem__(30, content[30] ^ 1)),
    "a flipped bit of the state": change(
        "state.safetensors", lambda content: content.__setitem__(-2, content[-2] ^ 1)
    ),
    "other settings": lambda folder: None,
}


@pytest.mark.parametrize("harm", HARMS)
def test_unfit_partial_results_are_not_used(harm, make, tmp_path, capsys):
    interrupted(make("TDA"), 6)
    HARMS[harm](tmp_path / "run/partial_test")
    settings = {"POSITIVE_ALPHA": 0.6} if harm == "other settings" else {}
    assert torch.equal(
        outputs(make("TDA", **settings)), outputs(make("TDA", output="whole", **settings))
    )
    assert "are not used" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ZERO", "TDA"])
def test_results_of_changed_images_are_not_used(method, make, eurosat):
    interrupted(trainer := make(method), 6)
    (changed,) = {Path(item.impath) for item in trainer.test_loader.dataset.data_source[:1]}
    content = changed.read_bytes()
    status = changed.stat()
    other = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 30)).save(other, "PNG")
    try:
        changed.write_bytes(other.getvalue().ljust(len(content), b"\0"))
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert changed.stat().st_size == status.st_size
        assert torch.equal(outputs(make(method)), outputs(make(method, output="whole")))
    finally:
        changed.write_bytes(content)


# ---------------------------------------------------------------- dependence on earlier images


@pytest.mark.parametrize("method", thorough_but(["TPT"], ["TPT", "ZERO", "MTA"]))
def test_answers_depend_on_the_seed_and_not_on_other_images(method, make):
    found = outputs(make(method))
    alone = make(method)
    last = alone.test_loader.dataset[len(found) - 1]["img"]
    assert torch.equal(alone.model_inference(last[None].to(alone.device))[0], found[-1])
    other = make(method, "SEED", 2, output="other").test_loader.dataset[len(found) - 1]["img"]
    assert (other != last).flatten(1).any(dim=1).tolist() == [False, *[True] * (len(last) - 1)]


def test_tda_reads_images_in_an_order_of_the_seed(make):
    first, second = (make("TDA", "SEED", seed).test_loader.dataset.data_source for seed in (1, 2))
    assert [item.impath for item in first] != [item.impath for item in second]
    assert {item.impath for item in first} == {item.impath for item in second}


@pytest.mark.parametrize("method", thorough_but(("TPT", "TDA"), METHODS))
def test_towers_of_prec_amp_compute_in_half_precision_and_answers_in_fp32(method, make):
    trainer = make(method, PREC="amp")
    types = []
    answer = trainer.method.logits_of_features
    image_output = trainer.model.image_output
    trainer.model.image_output = lambda views: (
        types.append(autocast(trainer)) or image_output(views)
    )
    trainer.method.logits_of_features = lambda *given: (
        types.append((given[0].dtype, autocast(trainer))) or answer(*given)
    )
    assert outputs(trainer).isfinite().all()
    assert set(types) == {True, (torch.float32, False)}


def autocast(trainer):
    return torch.is_autocast_enabled(trainer.device.type)


def test_settings_are_checked_without_train_py_too(make):
    with one_line("DATALOADER.K_TRANSFORMS is 2"):
        make("TPT", "DATALOADER.K_TRANSFORMS", 2)


def test_nothing_is_not_a_number_where_views_are_equal_or_sure():
    features = torch.eye(3)[[0, 0, 0, 0]]
    mode, inlierness = mean_shift(features, 100 * features, 0.2, 4.0)
    assert torch.equal(mode, features[0]) and inlierness.tolist() == pytest.approx([0.25] * 4)
    logits = torch.tensor([[0.0, 2e4, 0.0], [0.0, 0.0, 0.0]])
    assert entropies(logits).tolist() == pytest.approx([0, torch.tensor(3.0).log().item()])
    assert (
        most_confident(logits.repeat(50, 1), 0.29).shape == (28,)
        and len(most_confident(logits, 0.1)) == 1
    )


# ---------------------------------------------------------------- runs


def four(method, *pairs):
    """A method that looks at four views, and settings."""
    return method, f"TRAINER.{method}.VIEWS", 4, *pairs


def test_run_without_training_prints_one_line_and_tests(launch, argv, eurosat, tmp_path):
    run = tmp_path / "run"
    done = launch.works(*argv(*four("ZERO", "TEST.MAX_IMAGES", 10), output="run"))
    assert "ZERO has nothing to train: it is only tested" in done.printed
    results = of_json(run / "results.json")
    used = results["data_use"]
    assert (results["n_test"], results["epochs"]) == (10, 0)
    assert not (run / "partial_test").exists()
    rows = of_json(eurosat / "eurosat/split_zhou_EuroSAT.json")["test"]
    chosen = [rows[number * 24 // 10] for number in range(10)]
    lines = "".join(f"eurosat/2750/{path}\0{label}\0{name}\n" for path, label, name in chosen)
    assert used["test"]["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert used["kind"] == "test-time" and used["fit"] == used["choose"] == []
    assert used["test"]["evaluations"] == 1


def of_run(folder):
    return ["--eval-only", "--model-dir", folder]


def test_tuning_starts_from_learned_context_vectors(launch, argv, command, tmp_path):
    coop = ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 5, "OPTIM.MAX_EPOCH", 1]
    launch.works(*argv("CoOp", *coop, output="coop"))
    own = ["TRAINER.CTPT.CTX_INIT", "", "TRAINER.CTPT.N_CTX", 5]
    unmoved = four("CTPT", *own, "TRAINER.CTPT.LR", 0)
    done = launch.works(*argv(*unmoved, output="run", options=of_run(tmp_path / "coop")))
    assert f"Loading prompts from {tmp_path}/coop" in done.printed
    accuracies = [of_json(tmp_path / run / "results.json")["accuracy"] for run in ("coop", "run")]
    assert accuracies[0] == accuracies[1]  # without a step it is CoOp
    file = ["MODEL.INIT_WEIGHTS", tmp_path / "coop/prompt_learner/model.pth.tar-1"]
    launch.works(*argv(*four("CTPT", *own, *file), output="file"))
    for run in ("run", "file"):
        for options in ([], ["--load-epoch", 7]):
            error = command(predict, tmp_path / run, "a.jpg", "--classes", *NAMES, *options).error
            assert "started from the prompts of another run" in error
    # a test of a run that had no start begins as that did
    ended = launch(*argv(*four("CTPT"), options=of_run(tmp_path / "run")))
    assert "has no checkpoint" in ended.printed


@pytest.mark.parametrize("prefix", ["", "module.prompt_learner."])
def test_tuning_starts_from_a_published_checkpoint_of_coop(prefix, make):
    trainer = make("TPT")
    state = {
        "ctx": torch.randn(4, 64),
        "token_prefix": torch.zeros(6, 1, 64),
        "token_suffix": torch.zeros(6, 72, 64),
    }
    state = {prefix + name: tensor for name, tensor in state.items()}
    trainer.method.checkpoints.load_prompts({"state_dict": state, "epoch": 50}, "a file")
    assert torch.equal(trainer.model.prompt_learner.ctx.cpu(), state[f"{prefix}ctx"])


def test_a_step_with_an_overflow_of_the_gradient_is_left_out(make):
    trainer = make("TPT")
    still = make("TPT", LR=0.0, output="still")
    views = trainer.test_loader.dataset[0]["img"][None].to(trainer.device)
    objective = trainer.method.objective
    trainer.method.objective = lambda *given: torch.inf * objective(*given)
    assert torch.equal(trainer.model_inference(views), still.model_inference(views))


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("method", thorough_but(["TPT"], ["TPT", "ZERO"]))
def test_predictions_are_those_of_the_test(method, launch, argv, command, eurosat, tmp_path):
    run = tmp_path / "run"
    photo = eurosat / "eurosat/2750/0/test_0.png"
    launch.works(*argv(*four(method), output="run"))
    (row,) = rows_of(command, run, photo, "--topk", 1, "--classes", *NAMES)
    files, expected, names = own_test(run, "all")
    assert row["top"][0]["class"] == names[expected[files.index(str(photo))].argmax()]
    classifier = load(run, LoadOptions(class_names=names))
    torch.testing.assert_close(classifier.logits(files), expected, rtol=0, atol=1e-4)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(classifier.logits, (files[:12], files[12:])))
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-4)
