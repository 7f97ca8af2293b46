"""Images in storage, by addresses: commands read them, within bounds. Web servers are not asked."""

import json
import os

import fsspec
import pytest
from marks import one_line, parquet_library

from fit import command as fit
from inference import addresses, embed, predict
from inference.addresses import Address

pytestmark = pytest.mark.slow
NAMES = "--classes", "a cat", "a dog"


@pytest.fixture
def remote(photos):
    """The address of the photos in the memory of fsspec."""
    memory = fsspec.filesystem("memory")
    for name in ("a.jpg", "b.png", "below/c.PNG", "d.webp", "e f.bmp"):
        memory.pipe(f"/photos/{name}", (photos / name).read_bytes())
    memory.pipe("/photos/notes.txt", b"no image")
    yield "memory://photos"
    memory.rm("/photos", recursive=True)


def tops(done):
    """The most probable class of each image, and its probability."""
    rows = json.loads(done.printed)
    best = {row["image"].rpartition("/")[2]: row["top"][0] for row in rows}
    return {name: (one["class"], round(one["probability"], 4)) for name, one in best.items()}


def test_images_of_addresses_are_those_of_the_files(remote, command, deep, photos):
    line = ["--backbone", deep, "--json", *NAMES]
    expected = tops(command(predict, photos, *line))
    assert tops(command(predict, f"{remote}/", *line)) == expected and len(expected) == 5
    of_folder = tops(command(predict, f"file://{photos}/", *line))
    assert {name: of_folder[name] for name in expected} == expected
    done = command(predict, f"{remote}/a.jpg", f"{remote}/b.png", *line)
    assert tops(done) == {name: expected[name] for name in ("a.jpg", "b.png")}


def test_a_list_names_addresses_and_faults_are_rows(remote, command, deep, tmp_path, monkeypatch):
    parquet = parquet_library().parquet
    names = [f"{remote}/b.png", f"{remote}/notes.txt", f"{remote}/gone.png"]
    (tmp_path / "list.csv").write_text("\n".join(["label,url", *(f"x,{name}" for name in names)]))
    how = "--to", tmp_path / "bank", "--backbone", deep
    done = command(embed, tmp_path / "list.csv", *how)
    assert done.status == 1 and "2 images could not be read" in done.errors[-1]
    rows = parquet.read_table(tmp_path / "bank").to_pylist()
    assert [row["path"] for row in rows] == names
    assert [bool(row["error"]) for row in rows] == [False, True, True]
    assert (
        "damaged or not a JPEG" in rows[1]["error"] and "there is no memory://" in rows[2]["error"]
    )
    monkeypatch.setattr(addresses, "of_filesystem", lambda *asked: 1 / 0)
    done = command(embed, tmp_path / "list.csv", *how)
    assert done.status == 1 and "2 images could not be read" in done.errors[-1]  # it is finished


def test_a_storage_that_is_gone_ends_the_command_which_resumes(
    remote, command, deep, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow (requirements-parquet.txt)")
    read = addresses.of_filesystem

    def gone(url, protocol):
        if "e f" in url:
            raise ConnectionResetError("the storage is gone")
        return read(url, protocol)

    line = f"{remote}/", "--backbone", deep
    whole, cut = (["--to", tmp_path / name] for name in ("whole", "cut"))
    command.works(embed, *line, *whole)
    monkeypatch.setattr(addresses, "of_filesystem", gone)
    error = command(embed, *line, *cut).error
    assert "e f.bmp cannot be reached (the storage is gone): run the same command again" in error
    assert not [*(tmp_path / "cut").glob("*.parquet")]
    monkeypatch.setattr(addresses, "of_filesystem", read)
    command.works(embed, *line, *cut)
    first, second = (tmp_path / name / "00000.parquet" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_a_pipe_at_an_address_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with one_line("is not a regular file"):
        Address(f"file://{tmp_path}/pipe.png").read()


def test_what_is_read_is_bounded_and_known(remote, command, deep, monkeypatch):
    monkeypatch.setattr(addresses, "MAX_BYTES", 50)
    with one_line("has more than 50 bytes"):
        Address(f"{remote}/b.png").read()
    line = "--backbone", deep, *NAMES
    assert "no images in" in command(predict, "memory://nothing/", *line).error
    for url in ("gopher://host/a.png", "reference://a/b.png", "simplecache::memory://a.png"):
        assert command(predict, url, *line).status == 2

    def missing(protocol):
        raise ImportError(f"{protocol} needs a library")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    addresses.filesystem.cache_clear()
    assert "pip install s3fs" in command(predict, "s3://bucket/a.png", *line).error
    addresses.filesystem.cache_clear()


@pytest.mark.parametrize("url", ["https://127.0.0.1:9/a.jpg", "HTTP://127.0.0.1:9/a.jpg"])
def test_images_on_the_web_are_refused_in_one_line(url, command, deep, photos, tmp_path):
    said = f"{url} is not read: download images from the web by img2dataset"
    assert said in command(predict, url, "--backbone", deep, *NAMES).error
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos / 'a.jpg'}\n{url}\n")
    to = tmp_path / "bank"
    assert said in command(embed, listed, "--to", to, "--backbone", deep).error
    assert not [*to.glob("*.parquet")]
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{url},a cat\n")
    assert said in command(fit, table, "--to", tmp_path / "model", "--backbone", deep).error
