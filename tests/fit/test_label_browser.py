"""tools/label.py --page: the command, and a browser that is used by keyboard while the server is gone."""

import shutil
import socket

import pytest
from marks import of_json, one_line, to_json
from visitors import served

from fit import command as fit
from fit.label import command as label
from fit.label import label_file as asked
from fit.label.advice import advice
from fit.label.apart import FitApart
from inference.arguments import load_options
from inference.options import LoadOptions

pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from test_label_page import NAMES, Labels, record

from fit.label.application import application

pytestmark = pytest.mark.slow

CLASSES = ["red", "green field", "blue lake", "grey", "white snow", "black"]


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path)


@pytest.fixture
def pool(eurosat, tmp_path):
    """A folder with 16 images of each class, whose names begin with the place of the class."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(len(CLASSES)):
        for file in (eurosat / f"eurosat/2750/{place}").iterdir():
            shutil.copy(file, folder / f"{place}-{file.name}")
    return folder


@pytest.fixture
def start(command, pool, tiny, tmp_path, interrupted_server):
    """`start(...)`: the command, which Ctrl-C ends as soon as it serves."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    def start(*words, names=CLASSES, place=pool):
        options = ["--to", tmp_path / "asked.csv", "--page", "--port", port, "--backbone", tiny]
        return command(label, place, "--count", 8, *options, *words, "--classes", *names)

    return start


def test_the_command_starts_where_it_ended(start, pool, tmp_path):
    file = tmp_path / "asked.csv"
    done = start()
    assert (done.status, done.errors) == (0, [])
    assert "with 8 images to label" in done.printed and "Open http://127.0.0.1:" in done.printed
    before = file.read_text()
    done = start("--host", "localhost")
    assert done.status == 0 and "to label" not in done.printed and file.read_text() == before
    assert start(names=["=1+1", "red"]).status == 0
    rows = [row | {"label": "reed"} for row in asked.lines_of(file)]
    asked.write_lines(file, rows)
    assert "it is a label in" in start().error


@pytest.fixture
def work(pool, tiny, tmp_path):
    """What happens between the rounds of a folder or a bank."""
    from inference.load import load

    classifier = load(None, LoadOptions(backbone=str(tiny), class_names=CLASSES, device="cpu"))

    def work(place=pool):
        words = [place, "--count", 8, "--to", tmp_path / "asked.csv", "--page", "--backbone", tiny]
        args = label.parse([*map(str, words), "--classes", *CLASSES])
        return label.Work(args, load_options(args), classifier)

    return work


def test_a_fit_is_of_the_labels_and_of_heads(work, tiny, tmp_path):
    asked_for = []
    for place in (tmp_path / "photos", tmp_path / "bank"):
        place.mkdir(exist_ok=True)
        one = work(place)
        if place.name == "bank":
            (place / "_embed.json").write_text("{}")
        one.apart.run = asked_for.append
        one.fit()
    folder, bank = map(fit.parse, asked_for)
    assert folder.images == tmp_path / "asked.csv" and folder.to == tmp_path / "asked-model"
    assert (folder.minutes, str(folder.backbone), folder.labels) == (0, str(tiny), None)
    assert (bank.images, bank.labels) == (tmp_path / "bank", tmp_path / "asked.csv")


def test_the_last_fit_asks_and_knows_the_classes_with_labels(work, command, pool, tmp_path):
    rows = [
        {"path": str(image), "label": CLASSES[int(image.name[0])], "asked": "random"}
        for image in sorted(pool.iterdir())
        if image.name[0] in "0123"
    ]
    asked.write_lines(tmp_path / "asked.csv", rows)
    one = work()
    one.apart.run = lambda words: command(fit, *words, "--methods", "GDA")
    one.fit()
    one.ask()
    more = asked.lines_of(tmp_path / "asked.csv")[len(rows) :]
    guesses = {row["guess"] for row in more}
    assert guesses and guesses <= {row["label"] for row in rows}
    said = advice(of_json(tmp_path / "asked-model/fit.json"), rows)
    assert said[0].startswith("Estimate after 64 labels")


def test_a_fit_in_a_process_of_its_own_gives_its_error(tmp_path):
    with one_line("there is no folder or file"):
        FitApart().run([str(tmp_path / "nothing"), "--to", str(tmp_path / "model")])


@pytest.fixture
def tab(chromium):
    tab = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    tab.set_default_timeout(60_000)
    return tab


# The image that can be seen, once it has loaded
SEEN = "body[aria-busy=false] #image:not([hidden],[data-seen=''])"


def test_labels_by_keyboard_are_sent_again_until_the_server_answers(labels, tab):
    def press(key, text):
        tab.locator(SEEN).wait_for()
        tab.keyboard.press(key)
        tab.get_by_text(text).wait_for()

    labels.rounds.plan.model.mkdir()
    to_json(labels.rounds.plan.model / "fit.json", record(80.0, 50))
    tab.set_viewport_size({"width": 390, "height": 844})
    asked_for = []
    tab.on("request", lambda request: asked_for.append(request.url))
    app = application(labels.rounds)
    with served(app) as port:
        address = f"http://127.0.0.1:{port}/"
        tab.goto(address)
        for number, key in enumerate("10 ", 1):
            press(key, f"{number} of 6 in this round")
        assert tab.locator("body").bounding_box()["width"] <= 390
    press("2", "This is not kept yet: it is sent again")
    assert labels.read()[3]["label"] == ""
    with served(app, port=port):
        tab.get_by_text("4 of 6 in this round").wait_for()
        assert tab.locator("#message").inner_text() == ""
        press("1", "5 of 6 in this round")
        assert tab.get_by_role("heading").inner_text() == "Which class is this image?"
        press("2", "6 of 6 in this round")
        tab.get_by_text("This round is done.").wait_for()
        tab.keyboard.press("Enter")
        tab.get_by_text("0 of 1 in this round").wait_for()
        tab.get_by_text("Estimate after").wait_for()
        tab.close()
    found = [row["label"] or row["reason"] for row in labels.read()]
    assert found[:6] == ["red", "none of these", "skipped", NAMES[1], "red", NAMES[1]]
    assert labels.done == ["fit", "ask"]
    assert [url for url in asked_for if not url.startswith(address)] == []
