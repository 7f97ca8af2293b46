"""seen.npz: a calibration refuses what a model has learned from, whatever form the model has."""

import shutil

import numpy as np
import pytest
from dassl.data import data_manager
from dassl.data.datasets import Datum
from dassl.utils import read_image
from drawn import arguments
from marks import of_json, one_line, thorough_but
from PIL import Image
from test_groups import CLASSES, KINDS, picture

import inference.seen
from datasets import image_facts
from inference import calibrate_command as calibrate
from inference import export
from inference.calibrate import read_dataset
from inference.seen import ROLES, SeenImages

FORMS = "fit", "ensemble", "export", "export of a calibrated fit"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Class folders to learn from, near-copies of these images, and other images."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for tint, name in enumerate(CLASSES):
        for part in ("learned", "near", "other"):
            (root / part / name).mkdir(parents=True)
        for number in range(8):
            image = picture(rng, (tint + 1) % 3)  # so that the names mislead zero-shot CLIP
            image.save(root / "learned" / name / f"{number}.png")
            KINDS["cropped"](image).save(root / "near" / name / f"{number}.png")
            picture(rng, (tint + 1) % 3).save(root / "other" / name / f"{number}.png")
    return root


@pytest.fixture
def model(folders, fitting, tmp_path):
    """The folder of a fit. GDA is one head; two heads are an ensemble."""

    def model(*methods, images="learned"):
        fitting.works(folders / images, "--backbone", "small", "--methods", *methods)
        return tmp_path / "model"

    return model


@pytest.mark.parametrize("form", thorough_but(("fit", "export"), FORMS))
def test_training_images_do_not_calibrate(form, folders, model, command, tmp_path):
    folder = model("GDA", "LPPlusPlus", "ZSLP") if form == "ensemble" else model("GDA")
    if form == "export of a calibrated fit":
        command.works(calibrate, folder, "--images", folders / "other", "--error", 0.9)
    if "export" in form:
        command.works(export, folder, "--to", tmp_path / "exported")
        folder = tmp_path / "exported"
    before = (folder / "calibration.json").read_bytes()
    for images, words in {
        "learned": "24 of 24 images for the calibration are training images",
        "near": "near-copies of training images",
    }.items():
        assert words in command(calibrate, folder, "--images", folders / images).error
    assert (folder / "calibration.json").read_bytes() == before
    command.works(calibrate, folder, "--images", folders / "other", "--error", 0.9)
    roles = SeenImages.read(folder).role
    assert np.bincount(roles, minlength=4).tolist() == [24, 0, 24, 0]


def test_a_single_near_copy_is_left_out_with_a_word(folders, model, command, tmp_path):
    folder = model("GDA")
    images = shutil.copytree(folders / "other", tmp_path / "images")
    shutil.copy(folders / "near" / CLASSES[0] / "0.png", images / CLASSES[0] / "copy.png")
    ended = command.works(calibrate, folder, "--images", images, "--error", 0.9)
    assert "Left out: 1 of 25 images" in ended.printed and "copy.png" in ended.printed
    assert of_json(folder / "calibration.json")["images"] == 24


def test_a_model_without_a_ledger_needs_an_option_and_is_marked(folders, model, command):
    folder = model("GDA")
    (folder / "seen.npz").unlink()
    line = [folder, "--images", folders / "other", "--error", 0.9]
    assert "--accept-unknown-images" in command(calibrate, *line).error
    ended = command.works(calibrate, *line, "--accept-unknown-images")
    assert "of which the model may have learned" in ended.printed
    assert of_json(folder / "calibration.json")["unknown_images"] is True
    assert command(calibrate, *line).status == 2  # still


def test_a_run_and_its_export_know_their_training_images(
    finished, eurosat, deep, command, tmp_path
):
    run = shutil.copytree(finished("CoOp", "base"), tmp_path / "run")
    seen = SeenImages.read(run)
    assert {ROLES[role] for role in seen.role} == {"learned", "tested"}
    assert not seen.of_role("tested").signature.any()  # to compare pixels is enough
    split = of_json(eurosat / "eurosat/split_zhou_EuroSAT.json")
    for part in ("train", "test"):
        for path, label, name in split[part]:
            if label < 3:
                folder = tmp_path / part / name.replace(" ", "_")
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(eurosat / "eurosat/2750" / path, folder / path.replace("/", "_"))
    exported = tmp_path / "exported"
    command.works(export, run, "--to", exported)

    def refusal(model, images):
        line = model, "--images", tmp_path / images, "--backbone", deep
        return command(calibrate, *line).error

    assert "training images" in refusal(exported, "train")
    assert "test images" in refusal(exported, "test")
    SeenImages.read(exported).without_signatures().write(exported)  # as on the Hub
    assert "training images" in refusal(exported, "train")
    assert "training images" in refusal(run, "train")
    (run / "seen.npz").unlink()  # as that of an earlier version
    assert "training images" in refusal(run, "train")


def test_a_run_decodes_each_image_once(eurosat, tiny, launch, tmp_path, monkeypatch):
    decoded = []

    def counted(path, *options):
        decoded.append(path)
        return read_image(path, *options)

    for module in (data_manager, inference.seen):
        monkeypatch.setattr(module, "read_image", counted)
    settings = "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2
    line = arguments(eurosat, tiny, tmp_path / "run", *settings, trainer="CoOp", config="small")
    launch.works(*line)
    seen = SeenImages.read(tmp_path / "run")
    assert len(decoded) == len({*decoded}) == len(seen) > 12
    assert seen.of_role("learned").signature.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_noted_by_the_workers_of_the_loader(workers, eurosat, tiny, launch, tmp_path):
    settings = "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", workers
    line = arguments(eurosat, tiny, tmp_path / "run", *settings, trainer="CoOp", config="small")
    launch.works(*line)
    dataset = read_dataset(tmp_path / "run")
    seen = SeenImages.read(tmp_path / "run")
    for role, items in (("learned", dataset.train_x), ("tested", dataset.test)):
        found = seen.of_role(role)
        expected = SeenImages.of_files(items, role)
        assert (found.digest == expected.digest).all() and (found.label == expected.label).all()


def test_an_image_is_noted_as_its_exif_data_turns_it(tmp_path):
    file = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(1).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.fromarray(pixels).save(file, exif=exif)
    item = Datum(impath=str(file), label=0)
    noted = inference.seen.NotedImages([item])
    noted.note(str(file), read_image(file, exif_orientation=False))
    expected = SeenImages.of_files([item], "learned")
    assert (noted.seen([item], "learned").digest == expected.digest).all()


def test_images_behind_the_choice_of_zero_shot_clip_are_named(folders, model, command):
    folder = model("ZeroshotCLIP")
    ended = command.works(calibrate, folder, "--images", folders / "learned")
    assert "24 of them chose a setting of the model" in ended.printed


def test_training_images_of_a_part_of_an_ensemble_do_not_calibrate(
    folders, model, command, tmp_path
):
    """Zero-shot CLIP is the first part, and had its role."""
    images = tmp_path / "images"
    for place, name in enumerate(("red", "green", "blue")):  # so that the names help
        shutil.copytree(folders / "learned" / CLASSES[place - 1], images / name)
    folder = model("GDA", "ZSLP", images=images)
    methods = [one["method"] for one in of_json(folder / "fit.json")["chosen"]]
    assert methods[0] == "ZeroshotCLIP" and "ZSLP" in methods
    assert "are training images" in command(calibrate, folder, "--images", images).error


def test_the_ledger_keeps_roles_groups_and_no_picture_when_published(tmp_path):
    rng = np.random.default_rng(1)
    images = [picture(rng, number % 3) for number in range(6)]
    signatures = [image_facts.signature(image) for image in images]
    hashes = [image_facts.pixels_sha256(image) for image in images]
    first = SeenImages.of(hashes[:4], signatures[:4], [0, 1, 2, 0], "learned", [0, 0, 1, 2])
    second = SeenImages.of(hashes[4:], signatures[4:], [1, 2], "tested")
    both = first + second
    both.write(tmp_path)
    read = SeenImages.read(tmp_path)
    assert read.group.tolist() == [0, 0, 1, 2, 3, 4] and read.role.tolist() == [0] * 4 + [3] * 2
    assert read.of_role("learned").equal(both).tolist() == [True] * 4 + [False] * 2
    assert read.similar(first).all() and not first.similar(second).any()
    public = read.without_signatures()
    assert public.equal(both).all() and not public.signature.any()
    assert not public.similar(both).any()
    assert SeenImages.read(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "type", "role", "missing", "large"])
def test_a_damaged_ledger_prints_one_line(damage, tmp_path, monkeypatch):
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(3)]
    signatures = map(image_facts.signature, images)
    hashes = map(image_facts.pixels_sha256, images)
    SeenImages.of([*hashes], [*signatures], [0, 1, 1], "learned").write(tmp_path)
    file = tmp_path / "seen.npz"
    arrays = dict(np.load(file))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif damage == "large":
        monkeypatch.setattr("inference.seen.LARGEST", 100)
    else:
        if damage == "type":
            arrays["label"] = arrays["label"].astype(float)
        if damage == "role":
            arrays["role"] += 9
        if damage == "missing":
            del arrays["group"]
        np.savez(file, **arrays)
    with one_line("is damaged"):
        SeenImages.read(tmp_path)
