"""Backbones and tokenisers of the Hugging Face Hub: what is asked of its client, which keeps files in its cache."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import saved, write_tokeniser

import clip
from clip import fetch, hub
from common.files import checksum

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

NAME, WEIGHTS = "hf-hub:owner/model", "open_clip_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Client:
    """Repositories in folders. `asked` are the files that it downloads; a `wrong` one damages the weights."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self.asked, self.wrong = folder, cache, [], False

    def model_info(self, repository, **options):
        if not (self.folder / repository).is_dir():
            raise OSError(f"404: {repository}")
        files = (self.folder / repository).iterdir()
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=x.name, size=x.stat().st_size) for x in files])

    def download(self, repository, file, **options):
        content = (self.folder / repository / file).read_bytes()
        place = self.cache / f"models--{repository.replace('/', '--')}"
        blob, link = place / "blobs" / checksum(self.folder / repository / file), place / "snapshots" / COMMIT / file
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
    """Two repositories, of a model that reads tokens of another one; the cache is empty."""
    client = Client(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    monkeypatch.setattr(hub, "hf_hub_download", client.download)
    monkeypatch.setattr(hub, "snapshot_download", client.snapshot)
    (tmp_path / "hub/owner/words").mkdir(parents=True)
    write_tokeniser(tmp_path / "hub/owner/words")
    saved("CLIPA", tmp_path / "hub/owner/model", hf_tokenizer_name="owner/words", tokenizer_kwargs={})
    return client


def test_a_backbone_is_fetched_once_with_its_tokeniser(client, command):
    weights = client.folder / "owner/model" / WEIGHTS
    words = [file.rfilename for file in client.model_info("owner/words").siblings]
    for asked in ([hub.CONFIG, WEIGHTS, *words], []):
        client.asked.clear()
        done = command(fetch, "backbone", NAME)
        assert done.status == 0 and checksum(weights) in done.printed and "(owner/words)" in done.printed
        assert client.asked == asked and (" GB, of " in done.printed) == bool(asked)
    assert clip.weights_sha256(NAME) == checksum(weights)
    assert clip.load_backbone(NAME).tokenizer(["red lake"])[0, :3].tolist() == [7, 11, 1]


def test_damaged_weights_are_refused(client, command):
    client.wrong = True
    refused = command(fetch, "backbone", NAME)
    assert refused.status == 2 and "SHA-256 differs" in refused.error and "delete" in refused.error
    Path(refused.error.partition("delete ")[2].partition(",")[0]).unlink()
    client.wrong = False
    assert command(fetch, "backbone", NAME).status == 0


def test_what_the_hub_lacks_is_one_line(client, command):
    assert "cannot download owner/none" in command(fetch, "backbone", "hf-hub:owner/none").error
    assert "has no open_clip_config.json" in command(fetch, "backbone", "hf-hub:owner/words").error
    shutil.rmtree(client.folder / "owner/words")
    error = command(fetch, "backbone", NAME).error
    assert "the tokeniser owner/words" in error and "put its files into" in error
