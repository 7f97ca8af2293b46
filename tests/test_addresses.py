"""Images by addresses: commands read them, within bounds; the page and the API do not."""

import json
import os
import time

import fsspec
import pytest
from marks import one_line, parquet_library
from serving import serving

from inference import addresses, embed, predict
from inference.addresses import Address

pytestmark = pytest.mark.slow
NAMES = "--classes", "a cat", "a dog"


@pytest.fixture
def remote(photos):
    """The photos in the memory of fsspec and on a web server: the two addresses, and the server."""
    memory = fsspec.filesystem("memory")
    served = {}
    for name in ("a.jpg", "b.png", "below/c.PNG", "d.webp", "e f.bmp"):
        content = (photos / name).read_bytes()
        memory.pipe(f"/photos/{name}", content)
        served[f"/{name}"] = content
    memory.pipe("/photos/notes.txt", b"no image")
    with serving(served) as server:
        yield "memory://photos", server.address, server
    memory.rm("/photos", recursive=True)


def tops(done):
    """The most probable class of each image, and its probability."""
    rows = json.loads(done.printed)
    best = {row["image"].rpartition("/")[2]: row["top"][0] for row in rows}
    return {name: (one["class"], round(one["probability"], 4)) for name, one in best.items()}


def test_images_of_addresses_are_those_of_the_files(remote, command, deep, photos):
    memory, web, _ = remote
    line = ["--backbone", deep, "--json", *NAMES]
    expected = tops(command(predict, photos, *line))
    assert tops(command(predict, f"{memory}/", *line)) == expected and len(expected) == 5
    of_folder = tops(command(predict, f"file://{photos}/", *line))
    assert {name: of_folder[name] for name in expected} == expected
    done = command(predict, f"{web}/a.jpg", f"{memory}/b.png", *line)
    assert tops(done) == {name: expected[name] for name in ("a.jpg", "b.png")}


def test_a_list_names_addresses_and_faults_are_rows(remote, command, deep, tmp_path):
    parquet = parquet_library().parquet

    memory, web, server = remote
    names = [f"{memory}/b.png", f"{web}/a.jpg", f"{web}/gone.jpg", f"{memory}/gone.png"]
    (tmp_path / "list.csv").write_text("\n".join(["label,url", *(f"x,{name}" for name in names)]))
    how = "--to", tmp_path / "bank", "--backbone", deep
    done = command(embed, tmp_path / "list.csv", *how)
    assert done.status == 1 and "2 images could not be read" in done.errors[-1]
    rows = parquet.read_table(tmp_path / "bank").to_pylist()
    assert [row["path"] for row in rows] == names
    assert [bool(row["error"]) for row in rows] == [False, False, True, True]
    assert "404" in rows[2]["error"] and "there is no memory://" in rows[3]["error"]
    before = len(server.requests)
    assert command(embed, tmp_path / "list.csv", *how).status == 1
    assert len(server.requests) == before  # it is finished


def test_a_storage_that_is_gone_ends_the_command_which_resumes(
    remote, command, deep, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow (requirements-parquet.txt)")
    memory, web, server = remote
    read = addresses.of_filesystem

    def gone(url, protocol):
        if "e f" in url:
            raise ConnectionResetError("the storage is gone")
        return read(url, protocol)

    line = f"{memory}/", f"{web}/a.jpg", "--backbone", deep
    whole, cut = (["--to", tmp_path / name] for name in ("whole", "cut"))
    command.works(embed, *line, *whole)
    monkeypatch.setattr(addresses, "of_filesystem", gone)
    error = command(embed, *line, *cut).error
    assert "e f.bmp cannot be reached (the storage is gone): run the same command again" in error
    assert not [*(tmp_path / "cut").glob("*.parquet")]
    monkeypatch.setattr(addresses, "of_filesystem", read)
    server.faults = ["cut off"]  # a web server is one of many: it has a row
    assert command(embed, *line, "--to", tmp_path / "of_web").status == 1
    command.works(embed, *line, *cut)
    first, second = (tmp_path / name / "00000.parquet" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_a_pipe_at_an_address_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with one_line("is not a regular file"):
        Address(f"file://{tmp_path}/pipe.png").read()


def test_what_is_read_is_bounded_and_known(remote, command, deep, monkeypatch):
    memory, web, server = remote
    monkeypatch.setattr(addresses, "MAX_BYTES", 50)
    for url in (f"{memory}/b.png", f"{web}/b.png"):
        with one_line("has more than 50 bytes"):
            Address(url).read()
    server.faults = ["cut off"]
    monkeypatch.setattr(addresses, "MAX_BYTES", 10_000)
    with one_line("cannot read"):
        Address(f"{web}/b.png").read()
    monkeypatch.setattr(addresses, "SECONDS", (0.2, 0.2))
    server.faults = [lambda handler: time.sleep(1)]
    with one_line("cannot read"):
        Address(f"{web}/b.png").read()
    line = "--backbone", deep, *NAMES
    assert "may have any images" in command(predict, f"{web}/", *line).error
    assert "no images in" in command(predict, "memory://nothing/", *line).error
    for url in ("gopher://host/a.png", "reference://a/b.png", "simplecache::memory://a.png"):
        assert command(predict, url, *line).status == 2

    def missing(protocol):
        raise ImportError(f"{protocol} needs a library")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    addresses.filesystem.cache_clear()
    assert "pip install s3fs" in command(predict, "s3://bucket/a.png", *line).error
    addresses.filesystem.cache_clear()
