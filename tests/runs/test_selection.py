"""Runs that choose an epoch or a setting on test images: refused or marked in all results; the
tested epoch.
"""

import os
from itertools import product

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, TrainerX
from drawn import arguments, results, write_eurosat
from marks import of_json, times, to_json
from torch import nn
from trees import write_image

from common.errors import UsageError
from common.start import ROOT
from measures.results import RESULTS_FILE, SELECTED
from trainers import MethodTrainer, methods

pytestmark = pytest.mark.slow

BEST = ("TEST.FINAL_MODEL", "best_val")
ACCEPTED = ("TEST.SELECT_ON_TEST", True)
LOCKED = "MultiModalPromptLearner"
WHY = "the epoch is chosen on 8 images, all of them test images of ImageNet"
REMEDY = (
    "set TEST.FINAL_MODEL last_step, or accept it by TEST.SELECT_ON_TEST True, which marks "
    "the results"
)


def dataset(name):
    return ["--dataset-config-file", ROOT / f"configs/datasets/{name}.yaml"]


def choices(folder):
    return results(folder)["data_use"]["choose"]


def logged(folder):
    """The lines on the selection in the newest log."""
    newest = max(folder.glob("log.txt*"), key=lambda file: file.stat().st_mtime_ns)
    return [line for line in newest.read_text().splitlines() if SELECTED in line]


@pytest.fixture
def first_is_best(monkeypatch):
    """The first epoch is the best on validation images."""
    monkeypatch.setattr("trainers.base.trainer.MethodTrainer.test", falling(MethodTrainer.test))


def falling(test):
    def falls(self, split=None):
        accuracy = test(self, split)
        return 100.0 - self.epoch if split == "val" else accuracy

    return falls


# An epoch


@pytest.mark.parametrize(("place", "seeds"), [("out", []), ("out/seed{seed}", ["--seed", 1, 2])])
def test_best_val_on_imagenet_is_refused_with_the_remedy(
    place, seeds, refused, imagenet, tiny, tmp_path
):
    argv = arguments(
        imagenet, tiny, tmp_path / place, *BEST, options=[*dataset("imagenet"), *seeds]
    )
    refused(argv, f"error: {WHY}: {REMEDY}")


def test_refusal_comes_before_the_first_step_and_touches_no_other_run(
    launch, on_imagenet, imagenet, tiny, monkeypatch
):
    folder = on_imagenet("out")
    assert choices(folder) == [] and results(folder)["tested_epoch"] == 2 and logged(folder) == []
    (folder / "config.yaml").unlink()  # so that its settings do not differ
    before = times(folder)
    monkeypatch.setattr(methods()["MPL"], "training_step", None)
    assert (
        WHY in launch(*arguments(imagenet, tiny, folder, *BEST, options=dataset("imagenet"))).error
    )
    assert times(folder) == before


def test_accepted_selection_is_marked_also_in_evaluations_unless_they_name_an_epoch(on_imagenet):
    trained = on_imagenet("trained", *BEST, *ACCEPTED)
    record = {
        "what": "epoch",
        "dataset": "ImageNet",
        "classes": "all",
        "split": "val",
        "images": 8,
        "test_images": 8,
    }
    record |= {"trials": 2, "sha256": results(trained)["data_use"]["test"]["sha256"]}
    assert choices(trained) == [record]
    assert logged(trained) == [f"{SELECTED}: {WHY} (the results are marked)"]
    best = trained / LOCKED / "model-best.pth.tar"
    assert torch.load(best, weights_only=True)["metadata"]["choices"] == [record]

    def evaluated(name, of, *options):
        folder = on_imagenet(name, options=[*options, "--eval-only", "--model-dir", of])
        return results(folder)["dataset"], choices(folder), len(logged(folder))

    assert evaluated("tested", trained) == ("ImageNet", [record], 1)
    assert evaluated("named", trained, "--load-epoch", 2) == ("ImageNet", [], 0)
    assert evaluated("elsewhere", trained, *dataset("imagenetv2")) == ("ImageNetV2", [record], 1)
    begun = on_imagenet("begun", "MODEL.INIT_WEIGHTS", best)
    assert choices(begun) == [record] and len(logged(begun)) == 1
    # Its start was selected, whatever its own epoch.
    assert evaluated("again", begun, "--load-epoch", 2) == ("ImageNet", [record], 1)


ESCAPED = {"dataset": "Image\x1b[31mNet"}
IMPOSSIBLE = {
    "choices": (
        {"test_images": 9},
        {"images": -1, "test_images": -1},
        {"images": "8"},
        ESCAPED,
        {"what": None},
    ),
    "fit": ({"images": -1}, {"labels": "2"}, ESCAPED, {"sha256": 3}),
}


def test_evaluation_of_a_silent_checkpoint_claims_nothing_and_an_impossible_record_is_refused(
    on_imagenet, launch, imagenet, tiny, tmp_path
):
    trained = on_imagenet("trained", *BEST, *ACCEPTED)
    file = trained / LOCKED / "model-best.pth.tar"
    checkpoint = torch.load(file, weights_only=True)
    metadata = checkpoint["metadata"]
    use = ["--eval-only", "--model-dir", trained]
    for key, damage in ((key, damage) for key, damages in IMPOSSIBLE.items() for damage in damages):
        (record,) = metadata[key]
        torch.save(checkpoint | {"metadata": metadata | {key: [record | damage]}}, file)
        argv = arguments(imagenet, tiny, tmp_path / "out", options=[*dataset("imagenet"), *use])
        assert "is not a checkpoint of a training run" in launch(*argv).error, damage
    del metadata["choices"], metadata["inherited_choices"], metadata["fit"]  # an earlier version's
    torch.save(checkpoint, file)
    card = results(on_imagenet("tested", options=use))["data_use"]
    assert card["choose"] is card["fit"] is None


def test_resumed_run_keeps_the_card_the_mark_and_the_best_epoch(
    on_imagenet, first_is_best, monkeypatch, tmp_path
):
    step = methods()["MPL"].training_step

    def stops(self, batch):
        if self.training.epoch == 1:
            raise UsageError("cut off")
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="cut off"):
        patch.setattr(methods()["MPL"], "training_step", stops)
        on_imagenet("out", *BEST, *ACCEPTED)
    assert not (tmp_path / "out" / RESULTS_FILE).exists()
    folder, through = (on_imagenet(name, *BEST, *ACCEPTED) for name in ("out", "through"))
    assert len(list(folder.glob("log.txt*"))) == 2 and len(logged(folder)) == 1
    card = results(folder)["data_use"]
    assert card == results(through)["data_use"]
    (choice,) = card["choose"]
    # 2 epochs, and the end
    assert (card["test"]["evaluations"], choice["trials"], choice["test_images"]) == (
        3,
        2,
        8,
    )
    assert (results(folder)["epochs"], results(folder)["tested_epoch"]) == (2, 1)


# Other datasets


def test_partly_common_images_of_folders_are_found(refused, tiny, tmp_path):
    """The user's own images, a folder for each split; 1 of 4 validation images of each class is a
    test image.
    """
    for label, name in enumerate(("robin", "wren")):
        for part, size in (("train", 3), ("val", 3), ("test", 2)):
            for number in range(size):
                write_image(
                    tmp_path / f"birds/{part}/{name}/{number}.jpg", 100 * label + 10 * size + number
                )
        os.symlink(f"../../test/{name}/1.jpg", tmp_path / f"birds/val/{name}/3.jpg")
    (tmp_path / "birds.yaml").write_text("DATASET: {NAME: ImageFolder}\n")
    options = ["--dataset-config-file", tmp_path / "birds.yaml"]
    every = ["DATASET.NUM_SHOTS", -1]
    argv = arguments(
        tmp_path / "birds", tiny, tmp_path / "out", *BEST, "SEED", 2, *every, options=options
    )
    refused(
        argv,
        "the epoch is chosen on 8 images, 2 of them test images of birds: set TEST.FINAL_MODEL "
        "last_step",
    )


def test_lists_of_test_images_for_validation_are_found(
    refused, eurosat, tiny, monkeypatch, tmp_path
):
    """Without validation images, the test images would choose."""
    write_eurosat(tmp_path / "data", ["red", "blue lake", "grey"], val=0)
    argv = arguments(tmp_path / "data", tiny, tmp_path / "out", *BEST)
    refused(
        argv,
        "chosen on 6 images, all of them test images of EuroSAT, which has no validation images: "
        "set TEST.",
    )

    class Own(DATASET_REGISTRY.get("EuroSAT")):  # without `val_is_test`
        def read_split(self):
            train, _, test = super().read_split()
            return train, list(test), test

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "EuroSAT", Own)
    argv = arguments(eurosat, tiny, tmp_path / "out", *BEST, "DATASET.SUBSAMPLE_CLASSES", "base")
    refused(argv, "chosen on 6 images, all of them test images of EuroSAT (base classes): set")


class Foreign(TrainerX):
    """A trainer of another project: it knows nothing of choices."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_classes)).to(
            self.device
        )
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.register_model("own", self.model, self.optim)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


def test_trainer_of_another_project_is_refused_and_marked_too(
    refused, on_imagenet, imagenet, tiny, monkeypatch, tmp_path
):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Foreign", Foreign)
    monkeypatch.setattr(Foreign, "test", falling(TrainerX.test))
    options = [*dataset("imagenet"), "--trainer", "Foreign"]
    refused(arguments(imagenet, tiny, tmp_path / "out", *BEST, options=options), WHY)
    folder = on_imagenet("marked", *BEST, *ACCEPTED, options=options)
    assert [choice["what"] for choice in choices(folder)] == ["epoch"] and len(logged(folder)) == 1
    assert (results(folder)["epochs"], results(folder)["tested_epoch"]) == (2, 1)
    assert len(results(folder)["data_use"]["fit"]) == 1
    tested = on_imagenet("tested", options=[*options, "--eval-only", "--model-dir", folder])
    assert choices(tested) is None and results(tested)["tested_epoch"] == 1
    assert results(tested)["data_use"]["fit"] is None


# Training on test images


@pytest.mark.parametrize("copied", [True, False])
def test_training_on_test_images_is_refused_or_marked(copied, refused, launch, tiny, tmp_path):
    """As files of the same content in the user's own folders, or as the same files in a split."""
    root = tmp_path / "data"
    named = "eurosat"
    if copied:
        named = "image_folder"
        for part, label, number in product(("train", "test"), "ab", range(2)):
            same = 10 * (part == "test" and number == 1)  # as one of two training images
            write_image(
                root / part / label / f"{part}_{number}.png", 100 * (label == "b") + number + same
            )
    else:
        file = write_eurosat(root, ["red", "blue lake"], train=2, test=2)
        split = of_json(file)
        to_json(file, split | {"test": split["train"][:2] + split["test"][:2]})
    argv = ["--dataset-config-file", ROOT / f"configs/datasets/{named}.yaml"]
    found = f"2 of 4 training images of {'image_folder' if copied else 'EuroSAT'} are test images"
    refused(
        arguments(root, tiny, tmp_path / "out", options=argv),
        f"error: {found}: use each image once (tools/prepa",
    )
    launch.works(*arguments(root, tiny, tmp_path / "marked", *ACCEPTED, options=argv))
    (record,) = choices(tmp_path / "marked")
    assert (record["what"], record["split"], record["images"], record["test_images"]) == (
        "training",
        "train",
        4,
        2,
    )
    assert found in logged(tmp_path / "marked")[0]
    tested = [*argv, "--eval-only", "--model-dir", tmp_path / "marked"]
    launch.works(*arguments(root, tiny, tmp_path / "tested", options=tested))
    assert choices(tmp_path / "tested") == [record] and len(logged(tmp_path / "tested")) == 1


# A setting


PROBE = [
    "--trainer",
    "LinearProbe",
    "--config-file",
    ROOT / "configs/trainers/LinearProbe/small.yaml",
]
ONCE = ["OPTIM.MAX_EPOCH", 1]
C = "TRAINER.LINEARPROBE.C"


def test_linear_probe_does_not_choose_on_test_images(
    refused, on_imagenet, imagenet, tiny, tmp_path
):
    options = [*dataset("imagenet"), *PROBE]
    why = (
        f"{C} is chosen on 8 images, all of them test images of ImageNet: set {C}, or accept it "
        "by TEST.SELECT_ON"
    )
    refused(arguments(imagenet, tiny, tmp_path / "out", *ONCE, options=options), why)
    assert choices(on_imagenet("given", *ONCE, C, 1.0, options=options)) == []
    # Of ImageNet, as many validation images as shots, at most four of each class, as in CoOp's
    # code.
    folder = on_imagenet("out", *ONCE, *ACCEPTED, "DATASET.NUM_SHOTS", 1, options=PROBE)
    assert [(choice["images"], choice["test_images"]) for choice in choices(folder)] == [(4, 4)]
    folder = on_imagenet("accepted", *ONCE, *ACCEPTED, options=options)
    assert [(choice["what"], choice["test_images"]) for choice in choices(folder)] == [(C, 8)]
    assert len(logged(folder)) == 1
    # C chose the weights of every epoch
    for name, epoch in (
        ("newest", []),
        ("named", ["--load-epoch", 1]),
    ):
        tested = on_imagenet(
            name, *ONCE, C, 1.0, options=[*options, "--eval-only", "--model-dir", folder, *epoch]
        )
        assert choices(tested) == choices(folder) and len(logged(tested)) == 1
