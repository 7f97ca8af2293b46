"""tools/label.py --page: the command, and a browser that is used by keyboard while the server is killed."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from marks import of_json, one_line
from visitors import served

from common.start import ROOT
from fit import asked
from fit import command as fit
from fit import labelling as label
from fit.labeller.advice import advice
from fit.labeller.apart import FitApart
from inference.arguments import load_options
from inference.options import LoadOptions

pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from test_label_page import HOSTILE, Labels

from fit.labeller.application import application
from fit.labeller.rounds import Mark, key_of

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
        return command(label, place, "--ask", 8, *options, *words, "--classes", *names)

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
    from inference.models import load

    classifier = load(None, LoadOptions(backbone=str(tiny), class_names=CLASSES, device="cpu"))

    def work(place=pool):
        words = [place, "--ask", 8, "--to", tmp_path / "asked.csv", "--page", "--backbone", tiny]
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


def test_the_last_fit_asks_and_knows_the_classes_with_labels(
    work, command, pool, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(label, "ask", lambda *given: calls.append(given))
    rows = [
        {"path": str(image), "label": CLASSES[int(image.name[0])], "asked": "random"}
        for image in sorted(pool.iterdir())
        if image.name[0] in "0123"
    ]
    asked.write_lines(tmp_path / "asked.csv", rows)
    one = work()
    one.ask()
    one.apart.run = lambda words: command(fit, *words, "--methods", "SSText")
    one.fit()
    one.ask()
    assert [args.model for args, _ in calls] == [None, tmp_path / "asked-model"]
    assert sorted(calls[0][1].class_names) == sorted(CLASSES)
    assert sorted(calls[1][1].class_names) == sorted({row["label"] for row in rows})
    said = advice(of_json(tmp_path / "asked-model/fit.json"), rows)
    assert said[0].startswith("Estimate after 64 labels")


def test_a_fit_in_a_process_of_its_own_gives_its_error(tmp_path):
    with one_line("there is no folder or file"):
        FitApart().run([str(tmp_path / "nothing"), "--to", str(tmp_path / "model")])


class Page:
    """The command in a process of its own, which can be killed and started again."""

    def __init__(self, pool, tiny, file, ask):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        words = [pool, "--ask", ask, "--to", file, "--page", "--port", self.port]
        words += ["--backbone", tiny, "--classes", *CLASSES]
        self.command = [sys.executable, ROOT / "tools/label.py", *words]
        self.log = file.with_suffix(".log")
        self.start()

    def start(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(list(map(str, self.command)), stdout=log, stderr=log)
        while f"http://127.0.0.1:{self.port}/" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def served_page(pool, tiny, tmp_path):
    page = Page(pool, tiny, tmp_path / "asked.csv", 50)
    yield page
    page.process.send_signal(signal.SIGINT)
    page.process.wait(60)
    assert "Stopped." in page.log.read_text()


@pytest.fixture
def tab(chromium):
    tab = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
    tab.set_default_timeout(60_000)
    return tab


def test_many_classes_hostile_names_and_two_tabs(labels, tab):
    names = [f"class {number}" for number in range(40)]
    names[7] = HOSTILE
    labels.rounds.plan = labels.rounds.plan._replace(names=names)
    asked_for = []
    other = tab.context.new_page()
    for page in (tab, other):
        page.on("dialog", lambda dialog: asked_for.append(dialog.message))
        page.on("pageerror", lambda error: asked_for.append(str(error)))
        page.on("console", lambda line: asked_for.append(line.location["url"]))
    seen = tab.locator("body[aria-busy=false] #image:not([hidden],[data-seen=''])")
    with served(application(labels.rounds)) as port:
        tab.goto(f"http://127.0.0.1:{port}/")
        seen.wait_for()
        assert tab.locator("#classes button").count() == 40
        assert tab.locator("#classes button").nth(7).inner_text() == f"8\n{HOSTILE}"
        tab.keyboard.press("8")
        tab.get_by_text("1 of 6 in this round").wait_for()
        tab.keyboard.press("/")
        tab.keyboard.type("SS 39")
        assert tab.locator("#classes button:visible").all_inner_texts() == ["class 39"]
        tab.keyboard.press("Enter")
        tab.get_by_text("2 of 6 in this round").wait_for()
        assert tab.locator("#classes button:visible").count() == 40
        # The other tab labels the image that this one shows
        third = key_of(labels.paths[2])
        seen.wait_for()
        labels.rounds.mark(third, Mark("", ""), Mark("class 1", ""))
        tab.keyboard.press("5")
        tab.get_by_text("somebody else has changed this image, which is now: class 1").wait_for()
        other.goto(f"http://127.0.0.1:{port}/")
        other.locator("#image[data-seen]:not([data-seen=''])").wait_for()
        tab.keyboard.press("Backspace")
        tab.get_by_text("2 of 6 in this round").wait_for()
        tab.close()
        other.close()
    assert [row["label"] for row in labels.read()] == [HOSTILE, "", "class 1", "", "", ""]
    # The refused label, and the icon that there is not
    assert {text.rpartition("/")[2] for text in asked_for} <= {"label", "favicon.ico"}


class Worker:
    """Who labels by keyboard, and remembers what the server has confirmed."""

    def __init__(self, tab, pool, tmp_path):
        self.tab = tab
        self.folder = tmp_path
        self.confirmed = {}
        self.elsewhere = []
        self.paths = {key_of(str(path)): path.name for path in pool.iterdir()}
        tab.on("response", self.note)
        tab.on("request", self.note_request)

    def note_request(self, request):
        if not request.url.startswith("http://127.0.0.1:"):
            self.elsewhere.append(request.url)

    def note(self, response):
        if response.url.endswith("/label") and response.ok:
            given = json.loads(response.request.post_data)
            self.confirmed[given["key"]] = given["after"]

    def key(self):
        """The image that can be seen, once it has loaded."""
        seen = self.tab.locator("body[aria-busy=false] #image:not([hidden],[data-seen=''])")
        seen.wait_for()
        return seen.get_attribute("data-seen")

    def press(self):
        """Press the key of the image's class; returns the image."""
        key = self.key()
        self.tab.keyboard.press(str(1 + int(self.paths[key][0])))
        return key

    def label(self):
        self.wait_for_another(self.press())

    def wait_for_another(self, key):
        other = f"body[aria-busy=false] #image:not([data-seen='{key}'])"
        self.tab.locator(other).wait_for(state="attached")

    def check(self):
        """Each label that was confirmed is in the file; returns its rows."""
        with open(self.folder / "asked.csv", newline="") as text:
            rows = list(csv.DictReader(text))
        kept = {key_of(row["path"]): [row["label"], row.get("reason", "")] for row in rows}
        assert {key: kept[key] for key in self.confirmed} == self.confirmed
        return rows

    def picture(self, name):
        for width, height in ((1280, 800), (390, 844)):
            self.tab.set_viewport_size({"width": width, "height": height})
            self.tab.screenshot(path=self.folder / f"{name}-{width}.png")
            page = self.tab.locator("body").bounding_box()
            assert page["x"] >= 0 and page["width"] <= width


@pytest.mark.thorough
def test_50_labels_by_keyboard_while_the_server_is_killed(served_page, tab, pool, tmp_path):
    worker = Worker(tab, pool, tmp_path)
    tab.goto(f"http://127.0.0.1:{served_page.port}/")

    for _ in range(20):
        worker.label()
    served_page.kill()
    key = worker.press()
    tab.get_by_text("This is not kept yet: it is sent again").wait_for()
    assert key not in worker.confirmed
    worker.check()
    served_page.start()
    worker.wait_for_another(key)
    for _ in range(20):
        worker.label()
    key = worker.press()
    served_page.kill()
    worker.check()
    served_page.start()
    worker.wait_for_another(key)
    for _ in range(8):
        worker.label()
    last = list(worker.confirmed)[-1]
    tab.keyboard.press("Backspace")
    assert worker.key() == last
    worker.picture("label")
    worker.label()
    worker.picture("done")
    tab.keyboard.press("Enter")
    tab.get_by_text("A classifier learns").wait_for()
    worker.picture("fit")
    served_page.kill()
    tab.get_by_text("The server does not answer").wait_for()
    served_page.start()
    tab.get_by_text("Fit and ask again").wait_for()
    tab.keyboard.press("Enter")
    tab.get_by_text("Estimate after 50 labels").wait_for()
    tab.get_by_text("The next 50 labels should add about").wait_for()
    worker.key()
    assert tab.locator("#message").inner_text() == ""
    worker.picture("advice")
    for pressed in "0 ":
        seen = worker.key()
        tab.keyboard.press(pressed)
        worker.wait_for_another(seen)
    rows = worker.check()
    expected = [CLASSES[int(os.path.basename(row["path"])[0])] for row in rows[:50]]
    assert len(rows) > 53 and [row["label"] for row in rows[:53]] == [*expected, "", "", ""]
    assert [row["reason"] for row in rows[50:53]] == ["none of these", "skipped", ""]
    assert len(worker.confirmed) == 52 and worker.elsewhere == []
