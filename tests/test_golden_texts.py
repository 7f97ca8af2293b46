"""CuPL, DCLIP and WaffleCLIP read the sentences of their published code, and give its logits.

`--golden DIR` runs other figures of the same form. Tolerances are those of test_golden.py.
"""

from dataclasses import replace

import pytest
from dassl.engine import build_trainer
from drawn import make_cfg, section_pairs, write_eurosat
from marks import case_of, golden, to_json
from test_golden import BEFORE, backbone_of, close, images_of

from trainers import methods
from trainers.waffleclip import word_sequences

pytestmark = pytest.mark.slow

TEXTS = "CuPL", "DCLIP", "WaffleCLIP"


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda figures: case_of(figures).get("trainer") in TEXTS)


@pytest.fixture
def make(figures, backbones, tmp_path):
    """`make(method, KEY, VALUE, ..., SETTING=...)` -> a trainer of the case, and the logits of its
    images.
    """
    case = figures["case"]
    write_eurosat(tmp_path, case["classnames"], train=1, test=1)
    (tmp_path / "words.txt").write_text("\n".join(case.get("words", [])))
    to_json(tmp_path / "sentences.json", case.get("descriptors") or figures["sentences"])
    size = case["arch"]["image_resolution"]

    def make(method, *options, **settings):
        known = methods()[method].Settings.schema().keys()
        own = {key: value for key, value in (case["cfg"] | settings).items() if key in known}
        options = (
            "INPUT.SIZE",
            (size, size),
            *options,
            *section_pairs(method, {"PREC": "fp32"} | own),
        )
        trainer = build_trainer(
            make_cfg(method, tmp_path, backbone_of(case["arch"], backbones), tmp_path, *options)
        )
        trainer.set_model_mode("eval")
        return trainer, lambda: trainer.model_inference(
            images_of(case["batch"], size).to(trainer.device)
        )

    return make


def test_sentences_and_logits(figures, make, tmp_path):
    case = figures["case"]
    given = ("DATASET.SENTENCES", str(tmp_path / "sentences.json"))
    method = case["trainer"]
    words = str(tmp_path / "words.txt")
    for run in figures.get("runs", [figures]):
        trainer, logits = make(method, *given, "SEED", run.get("seed", 1), WORDS=words)
        if method != "CuPL":
            assert (
                dict(zip(trainer.dm.dataset.classnames, trainer.method.texts(), strict=True))
                == run["sentences"]
            )
        if "text_norms" in run:
            assert trainer.model.class_texts.norm(dim=1).tolist() == pytest.approx(
                run["text_norms"], abs=1e-5
            )
        close(logits(), run["logits_before"], BEFORE)
        for name, how in {"logits_merged": "unit", "logits_max": "max"}.items():
            if name in run:
                trainer.method.settings = replace(trainer.method.settings, AGGREGATE=how)
                trainer.method.finish_model()
                close(logits(), run[name], BEFORE)
    if method == "CuPL":  # its code keeps `_` in the class names of templates
        close(trainer.model.class_texts[:, :8], figures["text_first8"], 1e-5)
        trainer.method.settings = replace(trainer.method.settings, TEMPLATES=case["templates"])
        trainer.method.finish_model()
        close(trainer.model.class_texts[:, :8], figures["text_first8_with_templates"], 1e-5)
        close(logits(), figures["logits_with_templates"], BEFORE)
    if method == "DCLIP":
        _, logits = make(
            "ZeroshotCLIP", TEMPLATE=f"{case['cfg']['LABEL_BEFORE']}{{}}{case['cfg']['AFTER']}"
        )
        close(logits(), figures["logits_zeroshot"], BEFORE)


def test_the_mean_length_of_words_is_that_of_numpy():
    # 5.5 without rounding errors
    lengths = (
        [7, 6],
        [4],
        [3, 4, 4],
        [9],
        [8, 2, 2, 4],
        [9, 3, 8],
        [4, 5, 5],
    )
    names = ["_".join("x" * length for length in words) for words in lengths]
    assert word_sequences(names, ["abcdefgh"], lambda words: words[0])() == "abcde abcde"
