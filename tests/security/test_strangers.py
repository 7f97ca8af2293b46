"""Configurations of strangers are data: whatever they name, no code runs, nothing else is opened,
nobody is asked.
"""

import io
import os
import shutil
import sys
from functools import lru_cache

import open_clip
import pytest
import torch
from marks import one_line, to_json
from open_clip.tokenizer import HFTokenizer
from strangers import (
    AUTO_MAP,
    BACKBONE,
    CONFIG,
    FORMS,
    OPEN_CLIP,
    OPTIONS,
    TEXT,
    change,
    fill_hub,
    write_stranger,
)
from witness import Witness

import clip
from clip.configurations import MODEL, checked, tokeniser_data
from inference import export
from inference.classifier import PromptedClassifier
from inference.load import load

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")

# Their names are unused
LOADED = {
    "compiled kernels",
    "quantization",
    "files of a tokeniser",
    "a tower elsewhere",
    "code beside a known tower",
}


@pytest.fixture(scope="module")
def witness():
    return Witness()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_stranger(tmp_path_factory.mktemp("sound") / "stranger")


@pytest.fixture
def watched(sound, witness, tmp_path, monkeypatch):
    """A folder of a stranger, beside which nothing may be opened; evil people's files are in the
    Hub's cache, and whoever asks is told to go on.
    """
    (tmp_path / "outside").mkdir()
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "case/hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(clip.building, "build_cached", lru_cache(0)(clip.building.build_uncached))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "case"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    folder = shutil.copytree(sound, tmp_path / "case/stranger")
    clip.load_backbone(str(folder))  # imports what it needs
    fill_hub(tmp_path / "case/hub", folder)
    witness.folder = f"{os.path.realpath(tmp_path / 'case')}/"
    witness.seen = []
    yield folder
    witness.folder = ""
    assert (
        witness.seen == []
        and not (tmp_path / "case/ran").exists()
        and not any((tmp_path / "outside").iterdir())
    )


def features(folder):
    model = clip.load_backbone(str(folder))
    texts = model.tokenizer(["a photo of a red lake."])
    return torch.cat([model.encode_text(texts), model.encode_image(torch.ones(1, 3, 32, 32))])


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_of_a_stranger_is_data(form, watched):
    file, place, keys = FORMS[form]
    expected = features(watched)
    change(watched / file, place, keys)
    if form in LOADED:
        assert torch.equal(features(watched), expected)
    else:
        with one_line(watched, next(iter(keys)), error=clip.ClipError):
            clip.load_backbone(str(watched))


@pytest.mark.parametrize("file", [CONFIG, "tokenizer.json"])
@pytest.mark.parametrize("name", ["evil/text", "bert-base-uncased", "../stranger"])
def test_a_folder_names_no_other_files(file, name, watched):
    change(watched / OPEN_CLIP, TEXT, {"hf_model_name": name, "hf_tokenizer_name": name})
    (watched / file).unlink()
    with one_line(name, file, f"put its files into {watched}", error=clip.ClipError):
        clip.load_backbone(str(watched))


of_the_hub = pytest.mark.parametrize(
    "keys", [BACKBONE, {"model_type": "evil", "auto_map": AUTO_MAP}], ids=["timm", "code"]
)


@of_the_hub
def test_a_repository_of_the_hub_is_data(keys, watched, tmp_path):
    """Whoever names it gets its own files and no other ones."""
    (snapshot,) = (tmp_path / "case/hub/models--stranger--clip/snapshots").iterdir()
    change(
        snapshot / OPEN_CLIP, TEXT, {"hf_model_name": "evil/text", "hf_tokenizer_name": "evil/text"}
    )
    assert torch.equal(features("hf-hub:stranger/clip"), features(watched))
    change(snapshot / CONFIG, (), keys)
    with one_line("model_type", keys["model_type"], error=clip.ClipError):
        clip.load_backbone("hf-hub:stranger/clip")


@pytest.mark.parametrize("sha256", ["", "0" * 64])
@of_the_hub
def test_an_exported_folder_names_no_repository(
    keys, sha256, watched, witness, exported, tmp_path, monkeypatch
):
    (snapshot,) = (tmp_path / "case/hub/models--stranger--clip/snapshots").iterdir()
    change(snapshot / CONFIG, (), keys)
    folder = shutil.copytree(exported, tmp_path / "case/exported")
    change(folder / CONFIG, (), {"backbone": "hf-hub:stranger/clip", "backbone_sha256": sha256})
    monkeypatch.setattr(witness, "forbidden", (*witness.forbidden, "models--stranger"))
    with one_line(
        "the repository 'hf-hub:stranger/clip': give it by --backbone"
        if sha256
        else "a SHA-256 is missing or wrong"
    ):
        load(folder)


TOKENISERS = {  # the model_type in config.json, other options, and the file of the vocabulary
    "CLIPA": ("bert", {"do_lower_case": True, "model_max_length": 512}, "vocab.txt"),
    "XLM-RoBERTa": ("xlm-roberta", {"model_max_length": 512}, "sentencepiece.bpe.model"),
    "NLLB": (
        "m2m_100",
        {"tokenizer_class": "NllbTokenizer", "src_lang": "eng_Latn"},
        "sentencepiece.bpe.model",
    ),
    "mT5": (
        "mt5",
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "sp_model_kwargs": {}},
        "spiece.model",
    ),
}


@pytest.mark.parametrize("family", TOKENISERS)
def test_tokenisers_split_as_open_clips_do(family, tmp_path):
    model_type, options, file = TOKENISERS[family]
    to_json(tmp_path / CONFIG, {"model_type": model_type})
    to_json(tmp_path / OPTIONS, options)
    if file == "vocab.txt":
        (tmp_path / file).write_text(
            "[PAD] [UNK] [CLS] [SEP] [MASK] a red ##der la ##ke .".replace(" ", "\n")
        )
    else:
        trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
        texts = iter(["a photo of a red lake.", "redder lakes, green fields"] * 9)
        model = io.BytesIO()
        how = {
            "vocab_size": 40,
            "hard_vocab_limit": False,
            "pad_id": 0,
            "eos_id": 1,
            "unk_id": 2,
            "bos_id": 3,
        }
        trainer.train(sentence_iterator=texts, model_writer=model, minloglevel=2, **how)
        (tmp_path / file).write_bytes(model.getvalue())
    own = HFTokenizer(str(tmp_path), 16, local_files_only=True)
    with tokeniser_data(tmp_path) as data:
        ours = HFTokenizer(context_length=16, **data)
    assert data["local_files_only"] and not data["trust_remote_code"]
    sentences = ["a photo of a Redder lake.", "X X zebra"]
    assert type(ours.tokenizer) is type(own.tokenizer) and torch.equal(
        ours(sentences), own(sentences)
    )


@pytest.mark.parametrize("options", [{}, {"tokenizer_class": "PreTrainedTokenizerFast"}])
def test_no_name_of_a_folder_chooses_a_tokeniser(options, watched, tmp_path, monkeypatch):
    """transformers 5.0 took what it found in the path of a folder for the kind of its model."""
    to_json(watched / CONFIG, options)
    (watched / OPTIONS).write_text("{}")
    found = []
    for name in ("t5", "bert", "case"):
        (tmp_path / "case" / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "case" / name))
        with tokeniser_data(watched) as data:
            found.append(HFTokenizer(context_length=8, **data).tokenizer)
    assert {type(tokenizer).__name__ for tokenizer in found} == {"TokenizersBackend"}


def test_a_folder_of_a_repository_is_read_with_its_name(watched, tmp_path):
    name = "hf-hub:stranger/clip"
    folder = tmp_path / "case/exported"
    classifier = PromptedClassifier.zero_shot(name, ["red", "blue lake"])
    folder.mkdir()
    description = classifier.save(folder)
    with one_line(f"the repository '{name}': give it by --backbone"):
        load(folder)
    images = torch.ones(1, 3, 32, 32)
    logits = load(folder, backbone=name).logits(images)
    assert torch.equal(logits, classifier.logits(images))
    assert f"--backbone {name}" in export.card(description, {}, [], True)


@pytest.mark.parametrize("arch", open_clip.list_models())
def test_every_configuration_of_open_clip_is_read(arch, tmp_path):
    """As the Hub has them; a decoder of texts is left out."""
    config = open_clip.get_model_config(arch)
    to_json(tmp_path / OPEN_CLIP, {"model_cfg": config, "preprocess_cfg": {}})
    assert checked(tmp_path / OPEN_CLIP)["model_cfg"] == {
        key: config[key] for key in config if key in MODEL
    }
