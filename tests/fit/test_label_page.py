"""tools/label.py --page: what the server answers."""

import csv
import json
import os
import time
from contextlib import closing
from http.client import HTTPConnection
from threading import Event, Thread

import pytest
from marks import to_json
from PIL import Image
from visitors import served

from common.errors import UsageError
from common.pages import STYLE
from common.start import ROOT
from fit.label import label_file as asked
from fit.label.advice import advice

pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from fit.label.application import LARGEST, application
from fit.label.rounds import Mark, RoundPlan, Rounds, key_of

pytestmark = pytest.mark.slow

NAMES = ["red", "green field", "<b>blue</b>"]
HOSTILE = '<img src=x onerror="alert(1)">.png'


class Labels:
    """A file of six images that wait for a label, and the rounds of them."""

    def __init__(self, folder):
        self.file = folder / "asked.csv"
        self.pool = folder / "pool"
        self.pool.mkdir()
        names = [*(f"{number}.png" for number in range(5)), HOSTILE]
        self.paths = [str(self.pool / name) for name in names]
        for path in self.paths:
            Image.new("RGB", (40, 30), "red").save(path)
        Image.new("RGB", (9, 9)).save(folder / "secret.png")
        rows = [{"path": path, "label": "", "asked": "chosen", "mine": "x"} for path in self.paths]
        asked.write_lines(self.file, rows)
        self.done = []
        plan = RoundPlan(self.file, NAMES, self.paths, 6, folder / "model")
        self.rounds = Rounds(plan, lambda: self.done.append("fit"), self.ask)

    def ask(self):
        self.done.append("ask")
        lines = asked.lines_of(self.file)
        asked.write_lines(self.file, [*lines, {"path": self.paths[0] + "?", "asked": "random"}])

    def read(self):
        with open(self.file, newline="") as text:
            return list(csv.DictReader(text))


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path)


@pytest.fixture
def ask(labels):
    """`ask(path, body)` -> the status, the answer, and its headers."""
    with served(application(labels.rounds)) as port:

        def ask(path, body=None, **headers):
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            headers = {"Host": f"127.0.0.1:{port}"} | {
                key.replace("_", "-"): value for key, value in headers.items()
            }
            with closing(HTTPConnection("127.0.0.1", port, 60)) as connection:
                method = "GET" if body is None else "POST"
                headers["Content-Type"] = "application/json"
                connection.request(method, path, content, headers)
                answer = connection.getresponse()
                text = answer.read()
                is_json = "json" in (answer.headers["Content-Type"] or "")
                return answer.status, json.loads(text) if is_json else text, answer.headers

        yield ask


def given(key, after, before=("", ""), visitor="a"):
    return {"visitor": visitor, "key": key, "before": before, "after": after}


def images_of(ask, visitor):
    return ask(f"/state?visitor={visitor}")[1]["images"]


def refusal(ask, *question):
    status, answer, _ = ask(*question)
    assert status == 422
    return answer["error"]


def test_a_label_is_in_the_file_before_the_answer(ask, labels):
    assert ask("/classes")[1] == NAMES
    first, second, _ = images_of(ask, "a")
    status, state, _ = ask("/label", given(first, ("red", "")))
    assert status == 200 and state["images"][0] == second
    assert (state["left"], state["labels"], state["size"]) == (5, 1, 6)
    row = labels.read()[0]
    assert row == {**row, "label": "red", "reason": "", "mine": "x", "asked": "chosen"}
    assert ask("/label", given(second, ("", "none of these")))[0] == 200
    row = labels.read()[1]
    assert row["reason"] == "none of these" and row["label"] == ""
    # Undo
    status, state, _ = ask("/label", given(first, ("", ""), before=("red", "")))
    assert status == 200 and state["images"][0] == first and labels.read()[0]["label"] == ""


def test_two_visitors_lose_no_label(ask, labels):
    a, b = images_of(ask, "a"), images_of(ask, "b")
    assert a == [key_of(path) for path in labels.paths[:3]]
    assert len({*a, *b}) == 6 and images_of(ask, "a") == a
    assert images_of(ask, "c") == a  # of closed pages
    for _ in range(2):  # an answer may be lost
        assert ask("/label", given(a[0], ("red", "")))[0] == 200
    error = refusal(ask, "/label", given(a[0], ("green field", ""), visitor="c"))
    assert "somebody else has changed this image, which is now: red" in error
    assert labels.read()[0]["label"] == "red"

    def label(visitor, keys):
        for key in keys:
            assert ask("/label", given(key, ("green field", ""), visitor=visitor))[0] == 200

    threads = [Thread(target=label, args=one) for one in (("a", a[1:]), ("b", b))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["label"] for row in labels.read()] == ["red"] + 5 * ["green field"]


def test_a_file_changed_meanwhile_keeps_the_changes(ask, labels):
    keys = images_of(ask, "a")
    rows = labels.read()
    rows[0]["label"] = "red"
    del rows[1]
    asked.write_lines(labels.file, rows)
    assert "now: red" in refusal(ask, "/label", given(keys[0], ("green field", "")))
    assert "no longer in the file" in refusal(ask, "/label", given(keys[1], ("red", "")))
    assert ask("/label", given(keys[2], ("red", "")))[0] == 200
    assert [row["label"] for row in labels.read()] == ["red", "red", "", "", ""]
    labels.file.write_text("path\n")
    error = refusal(ask, "/label", given(keys[2], ("", "skipped")))
    assert "has no columns path, label and asked" in error


def test_other_sites_and_wrong_requests_are_refused(ask, labels, tmp_path):
    key = images_of(ask, "a")[0]
    wrong = [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ]
    for headers in wrong:
        status, answer, _ = ask("/label", given(key, ("red", "")), **headers)
        assert status == 403 and answer == {"error": "this comes from another site"}, headers
        assert ask("/state?visitor=a", **headers)[0] == 403
        assert ask(f"/images/{key}", **headers)[0] == 403
    assert ask("/", Sec_Fetch_Site="cross-site")[0] == 200
    assert ask("/state?visitor=a", Host="evil.example")[0] == 403
    labelled = [given(key, after) for after in (("reed", ""), ("", "tired"), ("red" * 1000, ""))]
    for body in (*labelled, b"{", {"visitor": "a"}):
        assert ask("/label", body)[0] == 422
    for body in (b'{"visitor": NaN}', b'{"visitor": "\\ud800"}'):
        status, answer, _ = ask("/label", body)
        assert status == 422 and answer.keys() == {"error"}
    assert ask("/state?visitor=" + 65 * "a")[0] == 422
    assert ask("/label", b" " * (LARGEST + 1))[0] == 413
    for name in (key_of(str(tmp_path / "secret.png")), "..%2f..%2fsecret.png", "../secret.png"):
        assert ask(f"/images/{name}")[0] in (404, 422)
    for name in ("/../rounds.py", "/%2e%2e/rounds.py", "/docs", "/openapi.json"):
        assert ask(name)[0] == 404
    assert all(row["label"] == "" for row in labels.read())


def test_nothing_of_a_name_is_html_and_nothing_is_loaded_from_elsewhere(ask, labels):
    status, page, headers = ask("/")
    assert status == 200 and b'<script src="page.js" defer></script>' in page
    status, style, headers = ask("/shared.css")
    assert status == 200 and headers["Content-Type"].startswith("text/css")
    assert style == STYLE.read_bytes()  # that of the other pages
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    files = [file.read_text() for file in (ROOT / "fit/label/page").iterdir()]
    assert len(files) == 3 and not any("//" in text.replace("// ", "") for text in files)
    assert not any(word in text for text in files for word in ("innerHTML", "insertAdjacent"))
    status, picture, headers = ask(f"/images/{key_of(labels.paths[5])}")
    assert status == 200 and picture[:3] == b"\xff\xd8\xff"
    assert headers["Content-Type"] == "image/jpeg"
    assert headers["Cache-Control"] == "private, max-age=3600"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert HOSTILE not in json.dumps(ask("/state?visitor=a")[1])
    os.unlink(labels.paths[4])
    error = refusal(ask, f"/images/{key_of(labels.paths[4])}")
    assert error == "this image cannot be read: skip it"


def wait(rounds):
    while rounds.doing:
        time.sleep(0.01)


def label_all(rounds):
    for key, line in rounds.lines().items():
        if asked.is_open(line):
            rounds.mark(key, Mark("", ""), Mark("red", ""))


def test_a_round_ends_with_a_fit_and_the_next_images(ask, labels):
    assert "images of this round wait for a label" in refusal(ask, "/fit?visitor=a", {})
    label_all(labels.rounds)
    began = Event()
    labels.rounds.work["fit"] = lambda: began.wait(60)
    status, state, _ = ask("/fit?visitor=a", {})
    assert (status, state["doing"], state["images"]) == (200, "fit", [])
    assert ask("/fit?visitor=b", {})[1]["doing"] == "fit"  # not twice
    unlabelled = given(key_of(labels.paths[0]), ("", ""), before=("red", ""))
    assert "a fit is running" in refusal(ask, "/label", unlabelled)
    began.set()
    wait(labels.rounds)
    assert labels.done == ["ask"] and len(images_of(ask, "a")) == 1
    state = ask("/state?visitor=a")[1]
    assert (state["left"], state["size"], state["labels"]) == (1, 1, 6)


def test_a_failed_fit_says_why_and_labelling_continues(ask, labels, capfd):
    def fail():
        raise UsageError("there is one class", "label more")

    labels.rounds.work["fit"] = fail
    label_all(labels.rounds)
    ask("/fit?visitor=a", {})
    wait(labels.rounds)
    state = ask("/state?visitor=a")[1]
    assert state["fault"] == "there is one class: label more" and len(state["images"]) == 1
    label_all(labels.rounds)
    labels.rounds.work["fit"] = lambda: 1 / 0
    ask("/fit?visitor=a", {})
    wait(labels.rounds)
    assert "its terminal says more" in ask("/state?visitor=a")[1]["fault"]
    assert "ZeroDivisionError" in capfd.readouterr().err


def lines(labelled, without=0):
    rows = [
        {"label": "red", "asked": "random" if number % 4 == 0 else "chosen"}
        for number in range(labelled)
    ]
    rows += without * [{"label": "", "asked": "random", "reason": "none of these"}]
    return [*rows, {"label": "", "asked": "random"}]


def record(accuracy, labelled, zero_shot=50.0, groups=25):
    estimate = {"accuracy": accuracy, "low": accuracy - 12, "high": accuracy + 9, "groups": groups}
    facts = {"finished": True, "estimate": estimate, "zero_shot": zero_shot, "of_class": 10.0}
    return facts | {"notes": [], "images": labelled * [{}], "names": ["a", "b", "c", "d"]}


def test_advice_says_what_more_labels_buy_and_when_to_stop():
    said = advice(record(80.0, 100), lines(100))
    assert "Estimate after 100 labels: 80.0% of new images right (95%: 68.0 to 89.0)" in said[0]
    # Errors of 20% and, by guessing, 75%: each of log2(40) doublings divides them by as much
    factor = (20 / 75) ** (1 / 5.3219)
    added = 20 - 20 * factor**0.58496
    assert f"should add about {added:.1f} points" in said[1] and "now 21 points wide" in said[1]
    assert said[2] == "More labels pay."
    said = advice(record(99.0, 2000), lines(2000, without=3))
    assert "3 of 503 images drawn at random have no label" in said[1]
    assert said[-1].startswith("You can stop here")
    assert "not better than guessing" in advice(record(25.0, 20), lines(20))[1]
    missing = {"finished": True, "estimate": None, "notes": ["NO ESTIMATE, as few", "Left out"]}
    assert advice(missing, lines(20)) == ["NO ESTIMATE, as few"]
    assert advice({"finished": False}, []) == []


def test_a_damaged_record_of_a_fit_gives_no_advice(labels):
    folder = labels.rounds.plan.model
    folder.mkdir()
    wrong = '{"finished": true, "estimate": 3, "notes": 1}'
    for content in ("{", "[]", '{"finished": true}', wrong):
        (folder / "fit.json").write_text(content)
        assert labels.rounds.advise() == []
    to_json(folder / "fit.json", record(80.0, 50))
    label_all(labels.rounds)
    assert len(labels.rounds.advise()) == 3
