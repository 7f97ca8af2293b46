"""Models of the Hugging Face Hub, and images at addresses."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from learned import images_of
from marks import one_line, parquet_library
from tiny_models import saved, write_tokeniser

import clip
from clip import fetch
from clip.hub import from_hub
from common.files import checksum
from fit import command as fit
from inference import addresses, embed, export, hub, predict
from inference.addresses import Address
from inference.load import load

pytestmark = pytest.mark.slow

NAME = "me/birds"


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A Hub that does not answer, and an empty cache."""
    for key, value in {
        "ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)


def test_a_model_of_the_hub_predicts_as_its_folder(exported, deep, eurosat, monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *name, **options: asked.append((name, options)) or exported
    )
    images = list(images_of(eurosat, range(6)))
    expected = load(exported, backbone=str(deep)).logits(images)
    assert torch.equal(load(NAME, backbone=str(deep), revision="v1").logits(images), expected)
    (((name,), options),) = asked
    assert (name, options["revision"]) == (NAME, "v1")
    model = ["config.json", "prompts.safetensors"]
    files = [*model, "calibration.json", "seen.npz"]
    others = ["README.md", "model.onnx", "x.bin", "other/config.json"]
    patterns = options["allow_patterns"]
    assert [*filter_repo_objects([*files, *others], allow_patterns=patterns)] == files


@pytest.mark.parametrize("name", ["me/cats", "nowhere", "../me/b", "me/b\n"])
def test_an_unreachable_model_prints_one_line(name, nobody):
    with one_line(
        "there is no folder me/cats here, and none on the Hub: a request about me/cats to http://"
        if name == "me/cats"
        else "is not the name of a model"
    ):
        load(name)


def test_export_uploads_the_folder_to_a_private_repository(
    finished, command, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(
        HfApi, "create_repo", lambda api, name, **options: asked.append(options) or f"hub/{name}"
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **options: asked.append(options))
    done = command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", NAME)
    assert "Uploaded to hub/me/birds" in done.printed and asked[0] == {
        "private": True,
        "exist_ok": True,
    }
    assert asked[1]["folder_path"] == tmp_path / "out" and asked[1]["repo_id"] == NAME
    assert set(asked[1]["allow_patterns"]) == {
        "config.json",
        "prompts.safetensors",
        "README.md",
        "seen.npz",
    }
    assert "class_matrix.safetensors" in asked[1]["delete_patterns"]  # of an export before


@pytest.mark.parametrize(("token", "name"), [("", NAME), ("hf_token", "birds"), ("hf_wrong", NAME)])
def test_refused_uploads_print_one_line(
    token, name, nobody, finished, command, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert command(export, finished("CoOp"), "--to", tmp_path / "out", "--push-to-hub", name).error
    assert (tmp_path / "out/config.json").exists() == (token == "hf_wrong")


# Backbones and tokenisers of the Hugging Face Hub: what is asked of its client, which keeps files
# in its cache.

pytest.importorskip("transformers")

MODEL = "hf-hub:owner/model"
WEIGHTS = "open_clip_model.safetensors"
WORDS = "bert-base-uncased"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Client:
    """Repositories in folders. `asked` are the files that it downloads; a `wrong` one damages the
    weights.
    """

    def __init__(self, folder, cache):
        self.folder = folder
        self.cache = cache
        self.asked = []
        self.wrong = False

    def model_info(self, repository, **options):
        if not (self.folder / repository).is_dir():
            raise OSError(f"404: {repository}")
        files = (self.folder / repository).iterdir()
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=x.name, size=x.stat().st_size) for x in files]
        )

    def download(self, repository, file, **options):
        content = (self.folder / repository / file).read_bytes()
        place = self.cache / f"models--{repository.replace('/', '--')}"
        blob = place / "blobs" / checksum(self.folder / repository / file)
        link = place / "snapshots" / COMMIT / file
        for path in (blob, link, place / "refs/main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(bytes(len(content)) if self.wrong and file == WEIGHTS else content)
        (place / "refs/main").write_text(COMMIT)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        self.asked.append(file)
        return str(link)

    def snapshot(self, repository, local_files_only, **options):
        folder = self.cache / f"models--{repository.replace('/', '--')}/snapshots" / COMMIT
        if not folder.is_dir():
            if local_files_only:
                raise FileNotFoundError(repository)
            for file in self.model_info(repository).siblings:
                self.download(repository, file.rfilename)
        return str(folder)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Two repositories, of a model that reads tokens of one which open_clip names, too; the cache
    is empty.
    """
    client = Client(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip.hub, "HfApi", lambda: client)
    monkeypatch.setattr(clip.hub, "hf_hub_download", client.download)
    monkeypatch.setattr(clip.hub, "snapshot_download", client.snapshot)
    for name in (WORDS, "owner"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    write_tokeniser(tmp_path / "hub" / WORDS)
    saved("CLIPA", tmp_path / "hub/owner/model", hf_tokenizer_name=WORDS, tokenizer_kwargs={})
    return client


def test_a_backbone_is_fetched_once_with_its_tokeniser(client, command):
    weights = client.folder / "owner/model" / WEIGHTS
    words = [file.rfilename for file in client.model_info(WORDS).siblings]
    for asked in ([clip.hub.CONFIG, WEIGHTS, *words], []):
        client.asked.clear()
        done = command.works(fetch, MODEL)
        assert checksum(weights) in done.printed and f"({WORDS})" in done.printed
        assert client.asked == asked and (" GB, of " in done.printed) == bool(asked)
    assert clip.weights_sha256(MODEL) == checksum(weights)
    assert clip.load_backbone(MODEL).tokenizer(["red lake"])[0, :3].tolist() == [7, 11, 1]


def test_damaged_weights_are_refused(client, command):
    client.wrong = True
    refused = command(fetch, MODEL)
    assert "SHA-256 differs" in refused.error and "delete" in refused.error
    Path(refused.error.partition("delete ")[2].partition(",")[0]).unlink()
    client.wrong = False
    command.works(fetch, MODEL)


def test_a_file_missing_on_the_hub_prints_one_line(client, command):
    assert "cannot download owner/none" in command(fetch, "hf-hub:owner/none").error
    assert "has no open_clip_config.json" in command(fetch, f"hf-hub:{WORDS}").error
    shutil.rmtree(client.folder / WORDS)
    error = command(fetch, MODEL).error
    assert f"the tokeniser {WORDS}" in error and "put its files into" in error


def test_a_missing_library_is_named_with_its_requirements(tmp_path):
    def without_transformers(only_here):
        raise ImportError("No module named 'transformers'")

    with one_line("its text needs the library transformers: pip install -r requirements-hf.txt"):
        from_hub(without_transformers, "its text", None, tmp_path)


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


def test_an_unreachable_storage_ends_the_command_and_it_resumes(
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
