"""The page of a fit: one file that a person can send."""

import re
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from marks import of_json
from PIL import Image

from fit import report
from fit.read_images import Photo
from inference.sample import Sample

QUICK = "--methods", "GDA"
HOSTILE = "<img src=x onerror=alert(1)> 'it' & \"that\" {{ 7*7 }}"


def page_of(folder):
    return (folder / "model/report.html").read_text()


def rows_of(page, kind):
    """The rows of the first table of this class, each as the texts of its cells."""
    table = re.search(rf'<table class="{kind}[^"]*">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [
        [
            unescape(re.sub("<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    ]


@pytest.fixture
def many(class_folders, tmp_path):
    """32 classes of 4 drawn images."""
    rng = np.random.default_rng(1)
    for place in range(32):
        colour = rng.integers(0, 256, 3)
        for number in range(4):
            pixels = np.clip(colour + rng.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            file = tmp_path / f"many/class {place:02}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return tmp_path / "many"


def test_the_page_is_a_file_without_scripts_in_both_colour_schemes(
    fitting, class_folders, tmp_path
):
    fitting.works(class_folders, *QUICK)
    page = page_of(tmp_path)
    assert len(page) < 2e6 and "data:image/jpeg;base64," in page
    assert not re.search(
        r"<(script|link|iframe|object)|<[^>]* on\w+=|https?://|url\(|@import", page
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "@media screen and (prefers-color-scheme: dark)" in page
    assert "details:not([open])" in page.split("@media print")[-1]  # one sheet of paper


def test_names_of_classes_and_files_are_text_on_the_page(fitting, class_folders, tmp_path):
    one, *_ = sorted(class_folders.iterdir())
    one.rename(class_folders / HOSTILE)
    for image in sorted((class_folders / HOSTILE).iterdir()):
        image.rename(image.with_name(f"{HOSTILE}{image.name}"))
    (class_folders / HOSTILE / "broken<b>.png").write_text("no image")
    fitting.works(class_folders, *QUICK)
    page = page_of(tmp_path)
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    assert {attributes["src"][:5] for tag, attributes in found if tag == "img"} == {"data:"}
    assert not any("onerror" in attributes or tag == "b" for tag, attributes in found)
    assert HOSTILE in [name for name, *_ in rows_of(page, "classes")]


def test_classes_are_sorted_and_the_matrix_has_their_accuracies(fitting, class_folders, tmp_path):
    fitting.works(class_folders, *QUICK)
    page = page_of(tmp_path)
    classes = rows_of(page, "classes")
    rows = of_json(tmp_path / "model/fit.json")["by_class"]
    assert [row[0] for row in classes] == [row["class"] for row in rows]
    shown = [float(row[2].rstrip("%")) for row in classes]
    assert shown == sorted(shown) == [round(row["accuracy"]) for row in rows]
    for place, (name, *cells) in enumerate(rows_of(page, "matrix")):
        numbers = [int(cell or 0) for cell in cells]
        assert name == classes[place][0] and abs(sum(numbers) - 100) <= len(cells)
        assert abs(numbers[place] - shown[place]) <= 1


def test_of_many_classes_the_twenty_worst_are_shown_first(fitting, many, tmp_path):
    fitting.works(many, *QUICK, "--groups", "none")
    page = page_of(tmp_path)
    worst = [row["class"] for row in of_json(tmp_path / "model/fit.json")["by_class"]][:20]
    assert [row[0] for row in rows_of(page, "classes")] == worst
    matrix = rows_of(page, "matrix")
    assert [row[0] for row in matrix] == worst and {len(row) for row in matrix} == {22}
    assert "other classes" in page and "All 32 classes" in page


def test_six_wrong_images_have_answer_label_and_the_most_similar_image(fitting, many, tmp_path):
    fitting.works(many, *QUICK, "--groups", "none")
    (found,) = re.findall(r'<div class="images">(.*?)</div>', page_of(tmp_path), re.DOTALL)[:1]
    figures = re.findall("<figcaption>(.*?)</figcaption>", found, re.DOTALL)
    assert len(figures) == 6 and found.count("data:image/jpeg") == 12
    words = r"named (class \d\d) \(\d+%\)label (class \d\d)most similar: class \d\d"
    pairs = [re.fullmatch(words, re.sub("<[^>]+>", "", text)).groups() for text in figures]
    assert len({*pairs}) == 6 and all(answer != label for answer, label in pairs)


def test_deleted_images_are_named(fitting, class_folders, tmp_path, monkeypatch):
    def gone(path, side):
        raise FileNotFoundError

    monkeypatch.setattr(report, "jpeg_of", gone)
    fitting.works(class_folders, *QUICK)
    page = page_of(tmp_path)
    assert "<img" not in page and "<code>" in page


def test_a_label_is_to_be_checked_if_the_answer_is_as_probable_as_usual(monkeypatch):
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 0, 1, 1])
    # Usual are 0.5625 for the first class, and 0.6 for the second
    assert report.label_issues(p, labels).tolist() == [False, False, False, True, False, False]
    monkeypatch.setattr(report, "probabilities", lambda *_: p)
    images = [Photo(str(place), "ab"[label]) for place, label in enumerate(labels)]
    trials = SimpleNamespace(sample=Sample.of(labels), held=np.arange(6))
    fit = SimpleNamespace(
        calibration=True,
        decision=SimpleNamespace(trials=trials),
        photos=SimpleNamespace(training=images, names=["a", "b"]),
    )
    found = report.mistakes(fit)
    assert found[["path", "answer"]].to_numpy().tolist() == [["3", "b"], ["2", "b"]]
    assert found["doubt"].tolist() == pytest.approx(-np.log([0.1, 0.45]))
