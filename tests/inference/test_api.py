"""`tools/serve.py --api`: answers, faults and limits, over HTTP."""

import asyncio
import json
import os
import subprocess
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dassl.utils import ImageError, read_image
from visitors import BOUNDARY, FORM, comments, png, served

from common.errors import UsageError
from common.start import ROOT
from inference.calibrated import Calibration
from inference.calibration import Temperature, Threshold
from inference.load import load
from inference.sets import Sets

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from inference.serving import api, reading, service  # noqa: E402

pytestmark = pytest.mark.slow

JSON = "application/json"


@pytest.mark.thorough
def test_errors_hide_the_path_of_a_model_and_no_other_letters():
    for source in ("g", "exported/g"):
        error = UsageError(f"{source} lacks images", "fit again")
        shown = service.without_source(error, SimpleNamespace(source=source))
        assert str(shown) == "the model lacks images: fit again"


def test_the_api_needs_no_gradio(python, tmp_path):
    code = "import sys; sys.modules['gradio'] = None; from inference.serving import api, command"
    (tmp_path / "start.py").write_text(code)
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'toolbox'}"}
    subprocess.run([python, tmp_path / "start.py"], env=os.environ | path, check=True)


@pytest.fixture(scope="module")
def classifier(finished):
    classifier = load(finished("CoOp"))
    sure = Threshold(0.0, 0.1, 0.95, 20, 0)
    sets = Sets("lac", tuple(np.linspace(0, 30, 20)))
    names = tuple(classifier.class_names)
    classifier.calibration = Calibration(
        names, 20, "0" * 64, "images", Temperature(2.0), sets, sure
    )
    return classifier


@pytest.fixture(scope="module")
def port(classifier):
    with served(api.application(service.Service([classifier]))) as port:
        yield port


def ask(port, body=None, kind=JSON, path="/predict", address="127.0.0.1", **headers):
    """The status and the JSON of an answer."""
    with closing(HTTPConnection("127.0.0.1", port, 300, (address, 0))) as connection:
        connection.request(
            "GET" if body is None else "POST", path, body, {"Content-Type": kind} | headers
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def as_json(image: bytes, *more: bytes, **options) -> bytes:
    first, *others = (b64encode(file).decode() for file in (image, *more))
    return json.dumps({"image": [first, *others] if more else first, **options}).encode()


def as_form(*images: bytes, **options) -> bytes:
    parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in options.items()]
    parts += [b'name="image"; filename="../../x.png"\r\n\r\n' + image for image in images]
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(("form", "kind"), [(as_json, JSON), (as_form, FORM)])
def test_answers_are_the_classifiers(form, kind, port, classifier, photos):
    file = photos / "e f.bmp"
    status, answer = ask(port, form(file.read_bytes(), top_k=2, sets=0.9), kind)
    said = classifier.predict(str(file))
    assert status == 200 and answer["unknown"] == said.unknown.item()
    for found, (expected,) in ((answer["top"], said.top(2)), (answer["set"], said.sets(0.9))):
        assert [pair["class"] for pair in found] == [name for name, _ in expected]
        probabilities = [value for _, value in expected]
        assert [pair["probability"] for pair in found] == pytest.approx(probabilities, abs=1e-6)
    assert ask(port, form(file.read_bytes()), kind)[1]["set"] is None


@pytest.mark.parametrize(("form", "kind"), [(as_json, JSON), (as_form, FORM)])
def test_several_images_have_an_answer_each_in_their_order(form, kind, port, photos):
    files = [(photos / name).read_bytes() for name in ("a.jpg", "b.png", "d.webp", "e f.bmp")]
    status, answers = ask(port, form(*files, b"damaged", files[0], top_k=1), kind)
    assert status == 200 and "is damaged or not a JPEG" in answers.pop(4)["error"]
    for file, answer in zip([*files, files[0]], answers, strict=True):
        (found,) = answer["top"]
        (expected,) = ask(port, form(file, top_k=1), kind)[1]["top"]
        assert found["class"] == expected["class"]
        assert found["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_a_list_of_one_image_and_a_data_url(port, photos):
    image = b64encode((photos / "b.png").read_bytes()).decode()
    of_list, of_url = (
        ask(port, json.dumps({"image": sent}))[1]
        for sent in ([image], f"data:image/png;base64,{image}")
    )
    assert of_list == [of_url]


def test_few_images_wait_to_be_classified_and_many_are_answered(classifier, monkeypatch):
    monkeypatch.setattr(service, "BATCH", 2)
    go = Event()
    read = []
    logits = classifier.logits
    read_batch = service.read_batch
    monkeypatch.setattr(
        classifier, "logits", lambda pixels, names: go.wait() and logits(pixels, names)
    )
    monkeypatch.setattr(
        service, "read_batch", lambda *given, **how: read.append(1) or read_batch(*given, **how)
    )

    async def ask_many():
        served = service.Service([classifier])
        images = [png(9, 9)] * 60
        async with served.running(None):
            many = asyncio.create_task(served.answers_of(images, service.Question(image="")))
            await asyncio.sleep(1)
            before = len(read)
            go.set()
            return before, await asyncio.wait_for(many, 10)

    before, answers = asyncio.run(ask_many())
    assert 0 < before <= 2 * (torch.get_num_threads() + 1)
    assert len({answer["top"][0]["class"] for answer in answers}) == 1 and len(answers) == 60


def test_the_server_describes_itself(port, classifier):
    assert ask(port, path="/health") == (200, {"status": "ok"})
    _, about = ask(port, path="/model")
    assert about["class_names"] == classifier.class_names
    assert about["method"] == "CoOp" and about["unknown"]
    _, text = ask(port, path="/openapi.json")
    predict = text["paths"]["/predict"]["post"]
    kinds = predict["requestBody"]["content"]
    assert {*kinds} == {JSON, "multipart/form-data"}
    assert kinds["multipart/form-data"]["schema"]["properties"]["sets"]["type"] == "number"
    assert {str(status) for *_, status, _ in BAD} < {*predict["responses"]}


def test_another_site_learns_nothing_of_the_model(port):
    status, answer = ask(port, path="/model", Host="evil.example")
    assert status == 403 and answer.keys() == {"error"}


BAD_JSON = [
    (b"{", "Invalid JSON"),
    (b'{"image": "%"}', "image: it is not base64"),
    (b'{"image": 3}', "image: "),
    (b'{"image": [' + b"1," * 500_000 + b"1]}", "the body has too many values"),
    (b'{"image": []}', "image: send 1 to 100"),
    (as_json(*[b"x"] * 101), "image: send 1 to 100"),
    (as_json(b"x", top_k=0), "top_k: "),
    (as_json(b"x", sets=1), "sets: "),
    (as_json(b"x", sets=0.99), "ask for less"),
    (as_json(b"x", name=1), "name: "),
    (as_json(b"not an image"), "is damaged or not a JPEG"),
    (as_json(png(200_000, 1)), "a ratio of over 100"),
]
BAD = [  # body, kind, headers, status, words
    *((body, JSON, {}, 422, words) for body, words in BAD_JSON),
    (as_form(*[b"x"] * 101), FORM, {}, 400, "Too many files"),
    (as_form(b"x")[:99], FORM, {}, 422, "the form has no file `image`"),
    (as_form(b"x", a=1, b=2, c=3, d=4), FORM, {}, 400, "Too many fields"),
    (b"x", "text/plain", {}, 415, "send application/json"),
    (b"x", JSON, {"Transfer-Encoding": "chunked"}, 411, "the length is missing"),
    (b"x", JSON, {"Content-Length": "99999999999"}, 413, "the request has more than"),
]


@pytest.mark.parametrize(("body", "kind", "headers", "status", "words"), BAD)
def test_wrong_requests_get_one_line(body, kind, headers, status, words, port):
    found, answer = ask(port, body, kind, **headers)
    assert found == status and answer.keys() == {"error"}
    error = answer["error"]
    assert words in error and "\n" not in error and "/tmp" not in error


def test_a_wrong_method_gets_the_allowed_one(port):
    with closing(HTTPConnection("127.0.0.1", port, 300)) as connection:
        connection.request("PUT", "/predict", b"x")
        response = connection.getresponse()
        assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/predict", 405)])
def test_a_wrong_address_lists_the_addresses(path, status, port):
    found, answer = ask(port, path=path)
    assert found == status and "POST an image to /predict" in answer["error"]


def test_a_body_of_many_values_stops_nobody(port):
    """Each of its faults was listed in the event loop: 2 MB stopped the server for 33 seconds."""
    body = b'{"image": [' + b"1," * 1_000_000 + b"1]}"
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(ask, port, body) for _ in range(3)]
        health = pool.submit(ask, port, path="/health").result()
        statuses = {future.result()[0] for future in refused}
    assert health[0] == 200 and statuses == {422}
    assert time.monotonic() - start < 5


def test_a_request_of_the_most_images_is_not_refused_for_its_commas(port):
    urls = ["data:image/png;base64," + b64encode(b"no image").decode()] * service.MOST
    body = {"image": urls, "top_k": 1, "sets": 0.9}
    status, answers = ask(port, json.dumps(body).encode())
    assert status == 200 and len(answers) == service.MOST


def test_readers_read_as_the_toolbox_and_survive_killing_images(photos, monkeypatch):
    """A GIF of 8 MB held up all visitors for 107 seconds."""
    monkeypatch.setattr(reading, "SECONDS", 1)
    monkeypatch.setattr(reading, "MEMORY", 60 << 20)
    monkeypatch.setattr(reading, "STRIP", 1000)
    readers = reading.Readers(1)
    slow = comments(3_000_000)
    deep = png(5000, 4999)
    damaged = (photos / "a.jpg").read_bytes()[:300]
    reasons = {
        slow: "takes more than 1 seconds: make it smaller",
        deep: "memory|cannot read",
        damaged: "cannot read the image in memory",
    }
    for content, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            readers.read(content)
        for file in (photos / "a.jpg", photos / "d.webp"):
            found = readers.read(file)
            expected = read_image(file)
            assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())
    process = readers.readers[0].process
    readers.close()
    assert process.poll() is not None


def test_a_large_image_is_refused(tmp_path, monkeypatch):
    """A TIFF of 1 MB took 12 GB."""
    (tmp_path / "image").write_bytes(png(60, 60))
    monkeypatch.setattr(reading, "PIXELS", 3599)
    readers = reading.Readers(1)
    with pytest.raises(ImageError, match="has more than 3,599 pixels"):
        readers.read(tmp_path / "image")
    readers.close()
