"""The page: what its functions return, how its server starts and ends, and a real browser that uses it."""

import json
import re
import shutil
import socket
import sys
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from learned import OPTIONS

from inference.classifier import PromptedClassifier
from inference.models import open_models
from inference.serving import command as serve_command

gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
from inference.serving import limits  # noqa: E402
from inference.serving import page as serve_page  # noqa: E402
from inference.serving.page import MOST_NAMES, MOST_TEXT, Page  # noqa: E402

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = ["red", "green field", "blue lake"]


@pytest.fixture
def page(finished, photos, monkeypatch, tmp_path):
    (tmp_path / "uploads").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    models = open_models([finished("MPL"), finished("CoOp"), finished("ZeroshotCLIP")], OPTIONS)
    return Page(models, NAMES, [photos / "a.jpg", photos / "b.png"])


@pytest.fixture
def photo(photos):
    return str(photos / "a.jpg")


@pytest.fixture
def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# The functions of the page


def test_bars_are_the_classifiers_probabilities(page, photo):
    for names in (NAMES, ["a cat", "a dog"]):
        message, *bars = page.classify(photo, "\n".join(["", *names, "  "]))
        assert not message["visible"]
        for (_, classifier), values in zip(page.models, bars, strict=True):
            expected = classifier.probabilities(photo, names)[0].tolist()
            assert values == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-6)


LONG = "a very " * 80 + "long name"
WRONG_NAMES = {
    "twice": ("red\nblue\nred", "'red' is given 2 times"),
    "none": (" \n", "there are no class names"),
    "too long": (f"red\n{LONG}", "tokens, the text tower has 77 positions"),
    "many characters": ("a" * (MOST_TEXT + 1), "have 20,001 characters: give at most 20,000"),
    "too many": ("\n".join(map(str, range(MOST_NAMES + 1))), f"give at most {MOST_NAMES}"),
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_wrong_class_names_give_a_message(name, page, photo):
    names, reason = WRONG_NAMES[name]
    message, *bars = page.classify(photo, names)
    assert message["visible"] and reason in message["value"]
    assert bars == [None] * 3


def test_a_model_with_fixed_names_leaves_the_bars_of_the_others(finished, photo):
    fixed = finished("CoOp", "base", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    page = Page(open_models([finished("VPT"), fixed], OPTIONS), NAMES, [])
    message, first, second = page.classify(photo, "a cat\na dog")
    assert first.keys() == {"a cat", "a dog"} and second is None
    assert "leave out the class names" in message["value"]


def test_a_file_without_an_image_gives_a_message_without_the_servers_folders(page, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    message, *bars = page.classify(str(tmp_path / "bad.jpg"), "red")
    assert "'bad.jpg' is damaged or not a JPEG" in message["value"] and str(tmp_path) not in message["value"]
    assert bars == [None] * 3 and page.look(str(tmp_path / "bad.jpg")) == []
    assert page.classify(None, "red")[1:] == [None] * 3 and page.look(None) == []


def test_roll_out_is_shown_for_clip_and_each_changed_image_tower(page, photo):
    pictures = page.look(photo)
    assert [caption.partition(":")[0] for _, caption in pictures] == ["CLIP", "MPL"]
    assert all(re.search(r"patches \d+ %", caption) for _, caption in pictures)
    assert all(picture.size == (32, 32) for picture, _ in pictures)
    assert pictures[0][0].tobytes() != pictures[1][0].tobytes()


def test_large_image_is_read_once_for_all_models(page, photo, monkeypatch):
    reads = []
    pixels = PromptedClassifier.pixels
    monkeypatch.setattr(PromptedClassifier, "pixels", lambda self, files: reads.append(files) or pixels(self, files))
    page.classify(photo, "red\nblue")
    assert len(reads) == 1


# Limits of requests


@pytest.fixture
def server(page, free_port):
    page.start("127.0.0.1", free_port)
    yield lambda: HTTPConnection("127.0.0.1", free_port, timeout=30)
    page.blocks.close()


def answer(server, path, headers, body=b""):
    """The status and the text of the answer to a POST; its body is sent without waiting, and may be incomplete."""
    with closing(server()) as connection:
        connection.putrequest("POST", f"/gradio_api/{path}")
        for key, value in headers.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read().decode()


def upload(server, *contents):
    """Send images as a browser does."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d.png"\r\n\r\n%s\r\n' % (number, content)
        for number, content in enumerate(contents)
    ]
    body = b"".join([*parts, b"--x--\r\n"])
    return answer(
        server, "upload", {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": len(body)}, body
    )


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("queue/join", {"Content-Length": 200 << 20}, 413),  # a body of 200 MB was read and parsed
        ("queue/join", {"Transfer-Encoding": "chunked"}, 411),
        ("upload", {"Content-Length": 60 << 20, "Content-Type": "multipart/form-data; boundary=x"}, 413),
    ],
)
def test_too_large_request_is_refused_before_its_body(path, headers, status, server):
    assert answer(server, path, headers)[0] == status


def test_uploads_of_all_visitors_have_a_limit(server, monkeypatch, tmp_path):
    """Each was kept until the server ended."""
    monkeypatch.setattr(limits, "SMALLEST", 1)
    monkeypatch.setattr(limits, "ALL_UPLOADS", 10_000)
    examples = {path for path in (tmp_path / "uploads").rglob("*") if path.is_file()}
    assert len(examples) == 2
    kept = []
    for number in range(5):
        status, text = upload(server, bytes([number]) * 3000, bytes([number + 100]) * 300)
        assert status == 200
        kept += [Path(name) for name in json.loads(text)]
        left = {path for path in (tmp_path / "uploads").rglob("*") if path.is_file()} - examples
        assert sum(path.stat().st_size for path in left) <= 10_000 and left >= set(kept[-2:])
    assert not kept[0].parent.exists() and all(path.is_file() for path in examples)
    assert upload(server, bytes(11_000))[0] == 503


def test_old_uploads_are_deleted(finished, free_port, monkeypatch, tmp_path):
    monkeypatch.setattr(serve_page, "EVERY", 1)
    monkeypatch.setattr(serve_page, "OLDEST", 1)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = Page(open_models([finished("VPT")], OPTIONS), NAMES, [])
    page.start("127.0.0.1", free_port)
    try:
        status, text = upload(lambda: HTTPConnection("127.0.0.1", free_port, timeout=30), b"x")
        (file,), deadline = map(Path, json.loads(text)), time.monotonic() + 60
        assert status == 200
        while file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        page.blocks.close()


# Start and end


@pytest.fixture
def serve(command, monkeypatch):
    """`serve(*arguments)`: the command, which Ctrl-C ends as soon as it serves."""

    class Pressed:
        def wait(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(serve_command, "Event", Pressed)
    started, start = [], Page.start
    monkeypatch.setattr(Page, "start", lambda page, *where: started.append(page) or start(page, *where))
    for key in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(key, "")
    yield lambda *arguments: command(serve_command, *arguments)
    for page in started:
        page.blocks.close()


def test_ctrl_c_ends_the_server(serve, finished, free_port):
    done = serve(finished("VPT"), "--port", free_port)
    assert (done.status, done.errors) == (0, [])
    assert done.printed == (f"Open http://127.0.0.1:{free_port}/ in a browser. Ctrl-C ends the server.\n\nStopped.\n")


def test_uploads_of_a_killed_server_are_deleted_by_the_next_one(serve, finished, free_port, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mpl-serve-killed").mkdir()
    (tmp_path / "mpl-serve-killed/photo.jpg").touch()
    assert serve(finished("VPT"), "--port", free_port).status == 0
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


WRONG = {
    "no model": ([], "no MODEL is given"),
    "no port": (["--port", "0"], "expected 1 to 65535, got '0'"),
    "a port in use": (["{run}", "--port", "{taken}"], "choose another --port"),
    "another machine's address": (["{run}", "--host", "192.0.2.1"], "cannot serve at 192.0.2.1:7860"),
    "no host": (["{run}", "--host", "nowhere.invalid"], "or check --host"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line(name, serve, finished, taken_port):
    arguments, reason = WRONG[name]
    done = serve(*(argument.format(run=finished("VPT"), taken=taken_port) for argument in arguments))
    assert (done.status, done.printed) == (2, "")
    assert reason in done.errors[-1]


def test_gradio_is_asked_for_by_its_requirements_file(serve, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "inference.serving.page")
    done = serve(finished("VPT"))
    assert done.status == 2 and "pip install -r requirements-serve.txt" in done.errors[-1]


# A real browser


@pytest.fixture
def tab(page, free_port):
    """An open page in headless Chromium, and the servers that it asked for anything."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    address = page.start("127.0.0.1", free_port)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            tab, servers = browser.new_page(viewport={"width": 1280, "height": 900}), set()
            tab.on("request", lambda request: servers.add(re.sub(r"^(data|blob):.*|/$", "", request.url.split("?")[0])))
            tab.goto(address)
            tab.get_by_label("Class names").wait_for()
            yield tab, servers, address
            browser.close()
    finally:
        page.blocks.close()


def test_a_browser_uploads_an_image_edits_names_and_gets_messages(tab, photo, page, tmp_path):
    tab, servers, address = tab
    tab.set_default_timeout(20_000)
    tab.set_input_files("input[type=file]", photo)
    bars = tab.get_by_test_id("label-output-value")
    bars.nth(2).wait_for()

    def check(names):
        best = [int(classifier.probabilities(photo, names).argmax()) for _, classifier in page.models]
        assert bars.all_inner_texts() == [names[index] for index in best]

    check(NAMES)
    tab.locator("figure").nth(1).wait_for()
    captions = tab.locator("figcaption").all_inner_texts()
    assert [caption.partition(": patches ")[0] for caption in captions] == ["CLIP", "MPL"]
    tab.get_by_label("Class names").fill("a cat\na dog\na house")
    bars.first.filter(has_text=re.compile("^a (cat|dog|house)$")).wait_for()
    check(["a cat", "a dog", "a house"])
    tab.get_by_label("Class names").fill("a cat\na cat")
    tab.wait_for_function("document.querySelector('#message textarea')?.value.includes('is given 2 times')")

    tab.get_by_label("Class names").fill("\n".join(NAMES))
    tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
    (tmp_path / "bad.jpg").write_text("no image")
    tab.set_input_files("input[type=file]", str(tmp_path / "bad.jpg"))
    tab.wait_for_function("document.querySelector('#message textarea')?.value.includes('not a JPEG')")
    tab.locator(".gallery img, table img").first.click()  # an example
    bars.nth(2).wait_for()
    assert tab.locator("#message textarea").count() == 0
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        answer = bars.first.bounding_box()
        assert answer["y"] + answer["height"] < 844  # without scrolling
    assert tab.get_by_label("Class names").bounding_box()["y"] > bars.nth(2).bounding_box()["y"]  # on a phone
    assert {url for url in servers if url and not url.startswith(address.rstrip("/"))} == set()  # to nobody else
