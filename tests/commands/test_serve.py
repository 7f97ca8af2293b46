"""The page: what its functions return, how its server starts and ends, and a real browser that uses
it.
"""

import json
import re
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving import serving
from visitors import (
    CLASSIFY,
    FORM,
    classified_by,
    event,
    file_data,
    png,
    post,
    started,
    upload,
)

from inference.calibrated import Calibration
from inference.calibration import Temperature, Threshold
from inference.load import Model, load, open_models
from inference.options import LoadOptions
from inference.serving import command as serve_command
from inference.sets import Sets

gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
from inference.serving import page as serve_page  # noqa: E402
from inference.serving import reading  # noqa: E402
from inference.serving.page import MOST_NAMES, Page  # noqa: E402

pytestmark = pytest.mark.slow

NAMES = ["red", "green field", "blue lake"]


@pytest.fixture(scope="module")
def models(finished):
    paths = [finished("MPL"), finished("CoOp"), finished("ZeroshotCLIP")]
    return open_models(paths, LoadOptions())


@pytest.fixture
def page(models, photos, monkeypatch, tmp_path):
    (tmp_path / "uploads").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return Page(models, NAMES, [photos / "a.jpg", photos / "b.png"])


@pytest.fixture
def photo(photos):
    return str(photos / "a.jpg")


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


# The functions of the page


def check_bars(page, photo, names, bars, within):
    for (_, classifier), values in zip(page.models, bars, strict=True):
        expected = classifier.probabilities(photo, names)[0].tolist()
        assert values == pytest.approx(dict(zip(names, expected, strict=True)), abs=within)


def test_the_page_says_unknown_and_shows_large_sets(finished, photo, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(serve_page, "BARS", 1)
    classifier = load(finished("CoOp"))
    sure = Threshold(-9.0, 0.1, 0.95, 20, 0)
    sets = Sets("lac", tuple(np.linspace(0, 30, 20)))
    classifier.calibration = Calibration(
        tuple(NAMES), 20, "0" * 64, "images", Temperature(2.0), sets, sure
    )
    page = Page([Model("CoOp", classifier)], NAMES, [], unknown=True, coverage=0.9)
    assert "the right one for 90% of images" in page.explanation()

    def answer(names=NAMES):
        return classified_by(page, photo, "\n".join(names))[1]

    def change(**parts):
        classifier.calibration = replace(classifier.calibration, **parts)

    assert answer().startswith("one of 3: ") and all(each in answer() for each in NAMES)
    change(sets=Sets("lac", (0.0,) * 20))
    assert answer() == "none of the classes"
    change(threshold=replace(sure, least_log_odds=99.0))
    assert answer() == "unknown"
    names = ["red", "grey"]  # other names: only bars
    expected = classifier.probabilities([photo], names)[0].tolist()
    assert [*answer(names).values()] == pytest.approx(expected)


def test_fixed_names_of_a_model_are_read_only(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for method, is_editable in {"CoOp": True, "LinearProbe": False}.items():
        classifier = load(finished(method, "all"))
        page = Page([Model(method, classifier)], classifier.class_names, [])
        boxes = [one for one in page.blocks.blocks.values() if isinstance(one, gradio.Textbox)]
        (box,) = [one for one in boxes if one.label.startswith("Class names")]
        assert box.interactive == is_editable == ("edit" in page.explanation())


@pytest.mark.parametrize("names", [NAMES, ["a cat", "a dog"]])
def test_bars_are_the_classifiers_probabilities_and_the_image_is_read_once(
    names, page, photo, monkeypatch
):
    reads = []
    read = reading.Reader.read
    monkeypatch.setattr(reading.Reader, "read", lambda *given: reads.append(given) or read(*given))
    message, *bars = classified_by(page, photo, "\n".join(["", *names, "  "]))
    assert len(reads) == 1 and not message["visible"]
    check_bars(page, photo, names, bars, 1e-6)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("red\nblue\nred", "'red' is given 2 times"),
        (" \n", "there are no class names"),
        (f"red\n{'long ' * 80}", "tokens, the text tower has 77 positions"),
        ("\n".join(map(str, range(MOST_NAMES + 1))), f"give 1 to {MOST_NAMES:,}"),
    ],
    ids=["twice", "none", "too long", "too many"],
)
def test_wrong_class_names_give_a_message(names, reason, page, photo):
    message, *bars = classified_by(page, photo, names)
    assert message["visible"] and reason in message["value"]
    assert bars == [None] * 3


# Limits of requests


@pytest.fixture
def server(page):
    with started(page) as (_, connect):
        yield connect


@pytest.fixture
def host():
    """An address from which nothing may be fetched."""
    with serving({"/x": b"x"}) as host:
        yield f"{host.address}/x"
        assert host.requests == []


LONG = {"Content-Length": str(200 << 20)}  # a body of 200 MB was read and parsed
CHUNKS = {"Transfer-Encoding": "chunked"}
REFUSED = {
    "a large body": ("queue/join", b"", LONG, 413),
    "chunks with a length": ("queue/join", b"ffffffff\r\n", CHUNKS | {"Content-Length": "10"}, 411),
    "a large upload": ("upload", b"", {"Content-Length": str(40 << 20), "Content-Type": FORM}, 413),
    "no JSON": ("queue/join", b"[" * 10**5, {}, 400),
    "another function of Gradio": ("component_server", b"{}", {}, 403),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_are_refused_before_gradio_reads_them(name, server):
    path, body, headers, status = REFUSED[name]
    assert post(server, path, body, **headers)[0] == status


def test_only_uploads_are_read(server, host, photo, tmp_path, capfd):
    """Gradio fetches addresses into memory, and opens files of the server: their images were
    classified.
    """
    answers = set()
    (own,) = upload(server, png(9, 9))
    missing = str(tmp_path / "missing.jpg")
    for path in (host, host.replace("http", "HTTP"), photo, missing, "a\0b", 3, None):
        data = [file_data(path), {"path": path}, {"path": own, "a": [file_data(path)]}]
        answers |= {post(server, "queue/join", event(CLASSIFY, given, "red")) for given in data}
    assert answers == {(403, b"there is no such upload")}
    for way in ("file=", "proxy="):
        with closing(server()) as connection:
            connection.request("GET", f"/gradio_api/{way}{host}")
            assert connection.getresponse().status == 403
    assert "Traceback" not in capfd.readouterr().err


def get(connect, path, **headers):
    with closing(connect()) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def test_a_visitor_cannot_save_what_a_session_holds(server):
    """Gradio writes it to a folder for each link that a visitor asks for, without a limit."""
    names = "\n".join(f"name {number}" for number in range(500))
    body = event(CLASSIFY, None, names)
    assert post(server, "queue/join", body)[0] == 200
    session = json.loads(body)["session_hash"]
    for path in ("gradio_api/deep_link", "gradio_api/deep_link/", "gradio_api//deep_link"):
        assert get(server, f"/{path}?session_hash={session}") == 403
    assert not list(Path(gradio.utils.get_upload_folder()).rglob("deep_links"))


def test_another_site_does_not_get_the_page(server):
    assert get(server, "/config", Host="evil.example") == 403


def test_a_visitor_gets_what_the_page_needs_alone(server):
    for path in ("/", "/config", "/gradio_api/info", "/theme.css", "/gradio_api/startup-events"):
        assert get(server, path) == 200, path
    for path in ("/monitoring", "/runs", "/gradio_api/vibe-code", "/token", "/gradio_api/call/a/b"):
        assert get(server, path) == 403, path


# Start and end


@pytest.fixture
def serve(command, monkeypatch, interrupted_server):
    """`serve(*arguments)`: the command, which Ctrl-C ends as soon as it serves."""
    for key in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(key, "")
    return lambda *arguments: command(serve_command, *arguments)


def test_ctrl_c_ends_the_server_and_no_uploads_stay(
    serve, finished, free_port, monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Of a server that was killed
    (tmp_path / f"{serve_command.UPLOADS}killed/uploads").mkdir(parents=True)
    (tmp_path / "mpl-serve-model").mkdir()  # it was deleted, too
    done = serve(finished("VPT"), "--port", free_port)
    assert (done.status, done.errors) == (0, [])
    assert f"Open http://127.0.0.1:{free_port}/" in done.printed and "Stopped." in done.printed
    assert [path.name for path in tmp_path.iterdir()] == ["mpl-serve-model"]


# A real browser


@pytest.fixture
def tab(page, chromium):
    """An open page in headless Chromium, and the addresses that it asked for anything outside of
    the server.
    """
    with started(page) as (address, _):
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        others = []
        tab.set_default_timeout(20_000)
        own = address, "data:", "blob:"
        tab.on("request", lambda request: request.url.startswith(own) or others.append(request.url))
        tab.goto(address)
        yield tab, others
        tab.close()


def test_a_browser_uploads_an_image_edits_names_and_gets_messages(tab, photo, page, tmp_path):
    tab, others = tab
    bars = tab.get_by_test_id("label-output-value")
    field = tab.get_by_label("Class names")
    field.wait_for()
    tab.set_input_files("input[type=file]", photo)
    bars.nth(2).wait_for()

    def check(names):
        best = [
            int(classifier.probabilities(photo, names).argmax()) for _, classifier in page.models
        ]
        assert bars.all_inner_texts() == [names[index] for index in best]

    def message(text):
        tab.wait_for_function(
            f"document.querySelector('#message textarea')?.value.includes('{text}')"
        )

    check(NAMES)
    tab.locator("figure").nth(1).wait_for()
    captions = tab.locator("figcaption").all_inner_texts()
    assert [caption.partition(": ")[0] for caption in captions] == ["CLIP without prompts", "MPL"]
    field.fill("a cat\na dog\na house")
    bars.first.filter(has_text=re.compile("^a (cat|dog|house)$")).wait_for()
    check(["a cat", "a dog", "a house"])
    field.fill("\n".join(NAMES))
    tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
    (tmp_path / "bad.jpg").write_text("no image")
    tab.set_input_files("input[type=file]", str(tmp_path / "bad.jpg"))
    message("not a JPEG")
    tab.locator(".gallery img, table img").first.click()  # an example
    bars.nth(2).wait_for()
    assert tab.locator("#message textarea").count() == 0
    assert others == []
