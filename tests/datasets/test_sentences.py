"""Sentences for each class (DATASET.SENTENCES): where they are read, what is recorded, and files
that are refused.
"""

import hashlib
import json

import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, results
from learned import images_of
from marks import to_json

from clip import tokenize
from inference import export, predict
from inference.load import load
from studies.study import Variant
from trainers import methods
from trainers.base.prompted import normalize

pytestmark = pytest.mark.slow

# For some of the classes, under other forms of their names, with a repetition.
SENTENCES = {
    "green_field": ["{} seen from above", "grass", "grass"],
    "blue lake": ["water."],
    "a class of others": ["x"],
}
READERS = ["ZeroshotCLIP", "TipAdapter", "SSText", "TDA", "KgCoOp", "PromptSRC", "DePT+KgCoOp"]


@pytest.fixture
def file(tmp_path):
    """A file of sentences."""
    to_json(tmp_path / "sentences.json", SENTENCES)
    return tmp_path / "sentences.json"


@pytest.mark.parametrize("method", READERS)
def test_a_method_reads_the_mean_of_the_sentences_and_else_its_template(
    method, file, eurosat, deep, tmp_path
):
    options = "DATASET.SENTENCES", str(file), f"TRAINER.{methods()[method].section()}.PREC", "fp32"
    trainer = build_trainer(
        make_cfg(method, eurosat, deep, tmp_path / "out", *options, "OPTIM.MAX_EPOCH", 1)
    )
    clip = trainer.model.frozen
    unit = {"SSText", "KgCoOp", "PromptSRC", "DePT+KgCoOp"}.isdisjoint({method})

    def mean(*texts):
        with torch.no_grad():
            features = clip.encode_text(tokenize(texts).to(trainer.device).long()).float()
        return (normalize(features) if unit else features).mean(dim=0)

    teacher = getattr(trainer.method, "teacher", None)
    found = getattr(trainer.method, "texts", None)
    if teacher:
        found = teacher.text_features
    elif not isinstance(found, torch.Tensor):
        found = trainer.model.class_texts
    assert found.shape[0] == 6
    expected = [mean("green field seen from above", "grass", "grass"), mean("water.")]
    if method != "PromptSRC":  # it has sixty templates
        expected.append(mean("a centered satellite photo of red."))
    for label, feature in zip((1, 2, 0), expected, strict=False):
        torch.testing.assert_close(normalize(found[label]), normalize(feature), rtol=0, atol=1e-5)


def test_sentences_are_on_the_card_in_predictions_and_in_exports(
    file, run, launch, argv, command, eurosat, tiny, tmp_path
):
    own = ("TRAINER.TIPADAPTER.SEARCH_STEP", "[4, 3]", "OPTIM.MAX_EPOCH", 1)
    given = ("DATASET.SENTENCES", str(tmp_path / "{dataset}.json"))
    (tmp_path / "EuroSAT.json").write_bytes(file.read_bytes())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {"sentences": "{dataset}.json", "sentences_sha256": sha256}.items()
    tip = run("tip", *own, *given, trainer="TipAdapter", config="small")
    zero = run("zero", *given, trainer="ZeroshotCLIP")
    of_tip, of_zero = (results(folder)["data_use"] for folder in (tip, zero))
    assert of_tip["kind"] == of_zero["kind"] == "extra text"
    assert facts <= of_tip["fit"][0].items() and facts <= of_zero["test"].items()
    line = *list(images_of(eurosat, range(6)))[:3], "--backbone", tiny, "--json"
    names = "--classes", "red", "green field"
    for folder, classes in ((tip, ()), (zero, names)):
        to = tmp_path / f"exported {folder.name}"
        command.works(export, folder, "--to", to, "--backbone", tiny, *classes)
        printed = [
            command(predict, path, *line, *classes).printed.replace(str(path), "")
            for path in (folder, to)
        ]
        assert printed[0] == printed[1] != ""
        assert load(to, backbone=str(tiny)).description.sentences == SENTENCES
    told = command.works(predict, *line, *names, "--sentences", file)
    assert told.printed != command(predict, *line, *names).printed
    (tmp_path / "EuroSAT.json").write_text('{"red": ["a red thing"]}')
    changed = "is not the file with the checksum DATASET.SENTENCES_SHA256"
    assert changed in command(predict, zero, *line, *names).error
    again = launch(*argv("TipAdapter", *own, *given, output="tip"))
    assert "DATASET.SENTENCES_SHA256" in again.error


@pytest.mark.thorough
def test_the_largest_cosine_of_a_class_equals_the_exported_program(file, run, command, tmp_path):
    given = "DATASET.SENTENCES", str(file), "TRAINER.DCLIP.AGGREGATE", "max"
    folder = run("dclip", *given, trainer="DCLIP", config="small")
    done = command(
        export, folder, "--to", tmp_path / "exported", "--onnx", "--classes", "red", "blue lake"
    )
    assert (done.status, done.errors) == (0, [])  # it compares the program with the model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "is not JSON"),
        ("[]", "does not have 1 to 100,000 sentences"),
        ("{}", "does not have 1 to"),
        ('{"red": []}', "does not have 1 to"),
        ('{"red": "a sentence"}', "does not have 1 to"),
        ('{"red": [1]}', "does not have 1 to"),
        ('{"red": ["\\ud800"]}', "does not have 1 to"),
        ('{"blue_lake": ["a"], "blue lake": ["b"]}', "has a class twice"),
        ('{"rose": ["a flower"]}', "has no sentences for any class of the dataset: it has 'rose'"),
        (json.dumps({"red": ["x" * 4000] * 2500}), "is larger than 8,388,608 bytes"),
    ],
)
def test_files_without_sentences_for_the_classes_are_refused(
    content, words, file, refused, argv, prepare_fails, eurosat
):
    file.write_text(content)
    refused(argv("ZeroshotCLIP", "DATASET.SENTENCES", str(file)), words)
    prepare_fails(["sentences", "eurosat", "--file", file], words, root=eurosat)


def test_waffleclip_refuses_what_has_no_words_or_letters(file, refused, argv, tmp_path):
    given = "DATASET.SENTENCES", str(file)
    words = tmp_path / "words.txt"
    words.touch()
    waffle = argv("WaffleCLIP", *given)
    refused([*waffle, "TRAINER.WAFFLECLIP.WORDS", str(words)], "TRAINER.WAFFLECLIP.WORDS is empty")
    file.write_text('{"red": ["., ."]}')
    refused(waffle, "DATASET.SENTENCES has no letters")


def test_prepare_compares_a_file_with_a_dataset(file, prepare, prepare_fails, eurosat):
    to_json(file, SENTENCES | {"a class of others": [], "gray": ["very " * 80]})
    printed = prepare_fails(
        ["sentences", "eurosat", "--file", file], "lacks 4 classes, and has 2 unknown", root=eurosat
    )
    assert hashlib.sha256(file.read_bytes()).hexdigest() in printed
    for words in ("1 have more than 77 tokens", "template: red, grey", "a class of others, gray"):
        assert words in printed
    every = {
        name: ["a sentence"]
        for name in ("red", "green field", "blue lake", "grey", "white snow", "black")
    }
    to_json(file, every)
    prepare.works("sentences", "eurosat", "--file", file, root=eurosat)


def test_a_study_ranks_methods_with_sentences_among_those_with_extra_text():
    given = "DATASET.SENTENCES", "file.json"
    assert Variant("a", "GDA").kind == "inductive"
    assert Variant("b", "GDA", overrides=given).kind == "extra text"
    assert Variant("c", "GDA", dataset_overrides={"eurosat": given}).kind == "extra text"
    assert Variant("d", "TDA", overrides=given).kind == "transductive"
