"""Images of one scene: how they are found, and what they change in a fit."""

import csv
import io

import numpy as np
import pytest
from marks import of_json
from PIL import Image, ImageEnhance, ImageOps
from PIL.ExifTags import IFD, Base
from scipy.ndimage import gaussian_filter

from datasets import copies, image_facts
from fit import choose
from inference.calibration import Temperature, Threshold
from inference.sample import Sample
from inference.sets import Sets

CLASSES = "red field", "green wood", "blue lake"


def picture(rng, tint):
    """Smooth noise with a colour, 64 x 64."""
    pixels = gaussian_filter(rng.normal(size=(64, 64, 3)), (3, 3, 0))
    pixels = 90 + 40 * pixels / pixels.std()
    pixels[..., tint] += 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shifted(image):
    pixels = np.pad(np.asarray(image), ((6, 6), (6, 6), (0, 0)), mode="reflect")
    return Image.fromarray(pixels[10:74, 2:66])


def compressed(image):
    file = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(1.05).save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


KINDS = {
    "shifted": shifted,
    "compressed": compressed,
    "cropped": lambda image: image.crop((2, 3, 62, 61)).resize((64, 64), Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "on its side": lambda image: image.rotate(90),
    "half the size": lambda image: image.resize((32, 32), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "turned": lambda image: image.rotate(4, Image.Resampling.BICUBIC, fillcolor=(90, 90, 90)),
}


def near_copies(images, labels):
    signatures = np.stack([image_facts.signature(image) for image in images])
    features = np.stack([np.asarray(image.resize((4, 4))).ravel() for image in images]).astype(
        np.float32
    )
    return copies.NearCopies.of(signatures, features, np.array(labels))


@pytest.mark.parametrize("kind", KINDS)
def test_near_copies_of_each_kind_are_found_and_other_images_are_not(kind, random_seed):
    rng = np.random.default_rng(random_seed)
    labels = np.arange(48) % 3
    images = [picture(rng, label) for label in labels]
    found = near_copies([*images, *map(KINDS[kind], images)], [*labels, *labels])
    groups = copies.components(96, [found.pairs])
    assert (groups[:48] == groups[48:]).mean() > 0.9
    assert len(np.unique(groups[:48])) >= 47


def test_a_class_with_a_common_layout_needs_more_similarity():
    scenes = np.linspace(0.18, 0.33, 2000)
    near = np.linspace(0.6, 0.95, 60)
    assert copies.raised(0.5, np.concatenate([scenes, near])) == 0.5
    assert copies.raised(0.5, np.concatenate([scenes, [0.8]])) == 0.5  # a single pair
    many = np.linspace(0.3, 1, 500)  # bursts, whose pairs are more or less similar
    assert copies.raised(0.5, np.concatenate([scenes, many])) == 0.5
    # As rings: nothing parts two kinds of pairs
    of_one_layout = 0.25 - 0.08 * np.log(1 - np.linspace(0, 0.999, 2000))
    assert (of_one_layout > 0.5).sum() > 50
    assert not (of_one_layout > copies.raised(0.5, of_one_layout)).any()


def plain_picture(rng):
    """A wood from above: one colour, and a texture that is weaker than the noise of a camera."""
    texture = gaussian_filter(rng.normal(size=(64, 64, 1)), (1, 1, 0))
    tint = rng.normal(0, 6, 3) + (40, 70, 50)
    return Image.fromarray(
        (tint + 0.4 * texture / texture.std()).round().clip(0, 255).astype(np.uint8)
    )


def noisy(image, rng):
    """A frame a moment later."""
    pixels = np.asarray(image) + rng.normal(0, 3, (64, 64, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def frames(rng, scenes):
    """Each picture with three frames, scene by scene."""
    return [image for scene in scenes for image in (scene, *(noisy(scene, rng) for _ in range(3)))]


def test_plain_images_form_as_many_groups_as_other_images_do(random_seed):
    rng = np.random.default_rng(random_seed)
    scenes = [picture(rng, 0) for _ in range(8)] + [plain_picture(rng) for _ in range(8)]
    labels = np.repeat([0, 1], 32)
    found = near_copies(frames(rng, scenes), labels)
    assert found.plain.tolist() == [False] * 32 + [True] * 32
    certain = copies.components(64, [found.pairs])
    assert len(np.unique(certain[:32])) == 8 and len(np.unique(certain[32:])) > 24
    guessed = found.guessed(certain, labels, np.ones(64, dtype=bool))
    groups = copies.components(64, [found.pairs, guessed])
    assert len(np.unique(groups[32:])) == 8
    assert np.mean(groups[32:].reshape(8, 4) == groups[32::4, None]) > 0.8


def test_plain_images_stay_apart_where_other_images_have_no_copies(random_seed):
    rng = np.random.default_rng(random_seed)
    images = [picture(rng, 0) for _ in range(12)] + [plain_picture(rng) for _ in range(12)]
    labels = np.repeat([0, 1], 12)
    found = near_copies(images, labels)
    assert len(found.guessed(np.arange(24), labels, np.ones(24, dtype=bool))) == 0


def test_where_most_images_have_copies_the_others_join_their_like():
    """Of every third scene one copy is a part, too small to be surely recognised; one class has no
    copies, and looks like none.
    """
    rng = np.random.default_rng(1)
    scenes = [picture(rng, 0) for _ in range(24)]
    box = (0, 0, 53, 53)
    crops = [scene.crop(box).resize((64, 64), Image.Resampling.BICUBIC) for scene in scenes[::3]]
    alone = [picture(rng, 2) for _ in range(8)]
    images = [*scenes, *map(shifted, scenes), *crops, *alone]
    labels = np.r_[np.tile(np.arange(24) % 2, 2), np.arange(0, 24, 3) % 2, np.full(8, 2)]
    found = near_copies(images, labels)
    certain = copies.components(64, [found.pairs])
    guessed = found.guessed(certain, labels, np.ones(64, dtype=bool))
    groups = copies.components(64, [found.pairs, guessed])
    before, after = (np.sum(found[48:56] == found[:24:3]) for found in (certain, groups))
    assert after > before + 2
    assert len(np.unique(groups[56:])) > 5  # twice as many as by the share of the other classes


def test_one_image_has_no_near_copies():
    found = near_copies([Image.new("RGB", (64, 64))], [0])
    alone = np.zeros(1, dtype=int)
    assert len(found.pairs) == len(found.guessed(alone, alone, alone == 0)) == 0


def test_photos_of_one_camera_within_seconds_are_a_burst():
    def photo(moment, camera="A", fraction=None):
        image = Image.new("RGB", (8, 8))
        exif = image.getexif()
        exif[Base.Model] = camera
        details = exif.get_ifd(IFD.Exif)
        details[Base.DateTimeOriginal] = f"2024:05:01 12:00:{moment:02d}"
        if fraction:
            details[Base.SubsecTimeOriginal] = fraction
        file = io.BytesIO()
        image.save(file, "JPEG", exif=exif)
        return image_facts.taken(Image.open(file).convert("RGB"))

    photos = [
        photo(0),
        photo(2),
        photo(30),
        photo(1, "B"),
        image_facts.Taken(),
        photo(33, fraction="5"),
    ]
    assert photos[5].second - photos[2].second == 3.5
    assert copies.bursts(photos, [0] * 6).tolist() == [[0, 1]]
    assert copies.bursts(photos, [0, 1, 0, 0, 0, 0]).tolist() == []
    one_by_one = [photo(second) for second in range(10)]  # a camera that goes from object to object
    assert copies.bursts(one_by_one, [0, 1, 0, 1, 0, 1, 1, 0, 1, 0]).tolist() == []
    assert np.isnan(photo(0, "").second)  # scans, of one date
    assert copies.bursts([photo(5)] * 8, [0] * 4 + [1] * 4).tolist() == []


def check_folds(held, labels, groups):
    """A group is in one fold, and each class of a fold is in another one, too."""
    for row in held:
        for group in np.unique(groups):
            assert len(np.unique(row[groups == group])) == 1
        for fold in np.unique(row[row != choose.NEVER]):
            assert set(labels[row == fold]) <= set(labels[row != fold])


def test_folds_of_any_groups_keep_them_together_and_classes_known(random_seed):
    rng = np.random.default_rng(random_seed)
    for _ in range(300):
        images = int(rng.integers(4, 30))
        labels = rng.permutation(np.r_[0, 1, rng.integers(0, rng.integers(2, 5), images - 2)])
        groups = rng.integers(0, rng.integers(1, images + 1), images)
        held = choose.folds(labels, groups, int(rng.integers(9)))
        for row in held:
            folds = np.unique(row[row != choose.NEVER])
            assert len(folds) >= 2 and folds.tolist() == list(range(len(folds)))
        check_folds(held, labels, groups)


def test_copies_change_no_mean_error_temperature_set_or_threshold(random_seed):
    """Each image once, or each so often that a mean over images would be another."""
    rng = np.random.default_rng(random_seed)
    labels = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 4 * np.eye(4)[labels]
    correct = (logits.argmax(axis=1) == labels).astype(float)
    often = rng.integers(1, 9, 300) * np.where(correct > 0, 1, 3)
    source = np.arange(300).repeat(often)
    once = Sample.of(labels)
    copied = Sample.of(labels[source], source)
    assert copied.size == once.size == 300
    assert copied.mean(correct[source]) == pytest.approx(correct.mean())
    assert copied.in_errors(correct[source]) == pytest.approx(once.in_errors(correct))
    fitted = Temperature.fit(logits, labels)
    of_copies = Temperature.fit(logits[source], labels[source], copied.weights)
    assert of_copies.temperature == pytest.approx(fitted.temperature)
    sets = Sets.fit(logits[source], labels[source], sample=copied)
    assert sets.label_scores == pytest.approx(Sets.fit(logits, labels).label_scores)
    threshold = Threshold.fit(logits, labels, 0.1)
    assert (
        Threshold.fit(logits[source], labels[source], 0.1, sample=copied).least_log_odds
        == threshold.least_log_odds
    )


def test_equal_classes_weigh_rare_ones_more():
    labels = np.array([0] * 90 + [1] * 10)
    correct = (labels == 0).astype(float)
    assert Sample.of(labels).mean(correct) == pytest.approx(0.9)
    equal = Sample.of(labels, prior="equal")
    assert equal.mean(correct) == pytest.approx(0.5) and equal.size == pytest.approx(36)


@pytest.fixture
def photos(tmp_path, random_seed):
    """Six scenes of each class, each with three near-copies; and a test set of two other scenes and
    two copies.
    """
    rng = np.random.default_rng(random_seed)
    for tint, name in enumerate(CLASSES):
        for scene in range(8):
            image = picture(rng, tint)
            kinds = [lambda same: same, shifted, compressed, ImageOps.mirror]
            part = "train" if scene < 6 else "test"
            folder = tmp_path / "photos" / part / name / f"scene{scene}"
            folder.mkdir(parents=True)
            for number, kind in enumerate(kinds if scene < 6 else kinds[:1]):
                kind(image).save(folder / f"{number}.png")
            if scene < 2:
                copy = tmp_path / "photos/test" / name / f"copy{scene}.png"
                copy.parent.mkdir(parents=True, exist_ok=True)
                KINDS["cropped"](image).save(copy)
    return tmp_path / "photos"


def read(folder):
    return of_json(folder / "fit.json")


QUICK = "--backbone", "small", "--methods", "GDA"


def test_a_folder_of_near_copies_counts_scenes(fitting, photos, tmp_path):
    printed = fitting.works(photos, *QUICK).printed
    record = read(tmp_path / "model")
    assert "18 groups hold 72 images" in record["grouped"]
    assert record["grouped"] in printed
    assert record["grouped"] in (tmp_path / "model/report.html").read_text()
    assert (record["estimate"]["images"], record["estimate"]["groups"]) == (72, 18)
    assert (record["test"]["images"], record["test"]["known"]) == (6, 6)
    assert "accuracy_with_known" in record["test"]
    groups = {photo["group_number"] for photo in record["images"] if photo["part"] == "train"}
    assert len(groups) == 18
    labels = list(csv.DictReader((tmp_path / "model/labels.csv").read_text().splitlines()))
    assert [*labels[0]][:4] == ["path", "label", "group", "answer"]
    issues = [row for row in labels if row["is_label_issue"] == "True"]
    assert len(labels) == 72 and len(issues) == len(record["suspects"])
    for row in issues:
        assert row["given_label"] == row["label"] != row["predicted_label"] == row["answer"]
        assert row["probability_of_label"] == row["label_score"]
    assert {row["class"] for row in record["by_class"]} == set(CLASSES)

    fitting.works(photos, *QUICK, "--group-by", "folder", to="named")
    assert "by the names of groups" in read(tmp_path / "named")["grouped"]
    assert "GROUPS ARE OFF" in fitting(photos, *QUICK, "--groups", "none", to="alone").printed
    alone = read(tmp_path / "alone")["estimate"]
    assert alone["groups"] == 72 and alone["high"] - alone["low"] < 20


def test_the_first_line_warns_about_plain_images(fitting, tmp_path):
    """Two classes that nothing tells apart, and one of plain images that is easy."""
    rng = np.random.default_rng(1)
    for name, draw in zip(CLASSES, (picture, picture, None), strict=True):
        scenes = [draw(rng, 0) if draw else plain_picture(rng) for _ in range(8)]
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(frames(rng, scenes)):
            image.save(tmp_path / "photos" / name / f"{number}.png")
    printed = fitting.works(tmp_path / "photos", *QUICK).printed
    record = read(tmp_path / "model")
    doubt = "blue lake has images that may be near-copies: 8 groups instead of"
    assert record["doubt"].startswith(doubt) and record["doubt"] in printed
    assert printed.index(doubt) < printed.index("Chosen:")
    assert f"If they do not, the estimate is {record['apart']:.0f}%." in record["doubt"]
    assert record["apart"] > record["estimate"]["accuracy"] + 5
    assert record["estimate"]["groups"] == 24
    page = (tmp_path / "model/report.html").read_text()
    assert page.index(doubt) < page.index("new images like yours")


def test_names_of_groups_come_from_a_column_a_folder_or_an_expression(fitting, photos, tmp_path):
    def refused(words, images, *options):
        assert words in fitting(images, *QUICK, *options).error

    table = photos / "table.csv"
    train = photos / "train"
    images = sorted(train.glob("*/*/*.png"))
    lines = ["path,label,group"]
    for image in images:
        _, label, scene, _ = image.relative_to(photos).parts
        lines.append(f"{image.relative_to(photos)},{label},{label}{scene}")
    table.write_text("\n".join(lines))
    fitting.works(table, *QUICK)
    assert "72 by the names of groups" in read(tmp_path / "model")["grouped"]
    without = [line.rpartition(",")[0] for line in lines]
    table.write_text("\n".join([*lines[:-1], f"{without[-1]},"]))
    refused("line 73", table)
    table.write_text("\n".join([lines[0], *(f"{line},all" for line in without[1:])]))
    refused("of the group 'all'", table)
    wrong = {
        "scene(": "is not a regular expression",
        "scene.": "0 captures",
        "(a)(b)": "2 captures",
        "scene([0-3])": "finds no group in",
        "(a{4294967295})": "is not a regular expression",
        "(" * 5000 + ")" * 5000: "is not a regular expression",
    }
    for by, words in wrong.items():
        refused(words, train, "--group-by", by)
    refused("contradict", train, "--group-by", "(s)", "--groups", "none")
    shallow = tmp_path / "shallow"
    for image in images:
        (shallow / image.parent.parent.name).mkdir(parents=True, exist_ok=True)
        image.rename(shallow / image.parent.parent.name / f"{image.parent.name}{image.name}")
    refused("in a folder below", shallow, "--group-by", "folder")


def test_a_test_accuracy_outside_of_the_interval_comes_first(fitting, photos, tmp_path):
    """The classes of the test images are exchanged."""
    first, second = (photos / "test" / name for name in CLASSES[:2])
    first.rename(photos / "other")
    second.rename(first)
    (photos / "other").rename(second)
    printed = fitting(photos, *QUICK).printed
    record = read(tmp_path / "model")
    assert record["test"]["accuracy"] < record["estimate"]["low"]
    words = "is below the interval of the estimate"
    page = (tmp_path / "model/report.html").read_text()
    assert words in printed and page.index(words) < page.index("new images like yours")


def test_two_mixes_of_classes_have_two_estimates(fitting, tmp_path, random_seed):
    rng = np.random.default_rng(random_seed)
    photos = tmp_path / "photos"
    for tint, (name, images) in enumerate(zip(CLASSES, (24, 6, 6), strict=True)):
        (photos / name).mkdir(parents=True)
        for number in range(images):
            # Two classes look similar
            picture(rng, 0 if tint else 2).save(photos / name / f"{number}.png")
    assert "if classes are equally frequent" in fitting(photos, *QUICK).printed
    estimates = read(tmp_path / "model")["estimates"]
    assert estimates["folder"]["accuracy"] > estimates["equal"]["accuracy"] + 2
    assert estimates["equal"]["groups"] < 36
    fitting.works(photos, *QUICK, "--prior", "equal", to="equal")
    record = read(tmp_path / "equal")
    assert record["estimate"] == record["estimates"]["equal"]
    # Of one mix
    assert all(abs(accuracy - record["curve"][-1][1]) < 35 for _, accuracy in record["curve"][1:])
