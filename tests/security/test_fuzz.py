"""Files, settings and downloads from anybody: they are accepted, or refused in one line, and
nothing in them runs.

Each property changes one file of a small project and runs one command on it, in this process.
Nothing outside its folder may change, no process start, no text run as code, nobody be asked by
network, and no file be opened that only a configuration names; nothing half-written may stay, and
what has a checksum may not give other results. `make fuzz FUZZ=5000 SEED=7` tries many inputs;
hypothesis prints the smallest one that fails.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from fuzzing import CACHED_HUB, FROM_HUB, READERS, RESUMED, STRANGER, Project, argv_of
from hostile import NAMES, NUMBERS, SPECIAL, as_json, content_of, damaged, put
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from marks import of_json
from published import change_file
from strangers import (
    CONFIG,
    OPEN_CLIP,
    OPTIONS,
    TOKENS,
    strange,
)

from datasets.preparing.sources import downloadable
from runs.config import extend_cfg, flatten

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]

# A change of one byte in these may not give other results without a word.
CHECKED = ("checkpoint, evaluated", "exported prompts", "cached features", "bank, predicted")
RESULTS = "out/predictions.npz", "answers.csv"
PROPERTIES = len(READERS) + len(CHECKED) + 4
EXAMPLES = -(-int(os.environ.get("FUZZ", PROPERTIES)) // PROPERTIES)
several = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if "FUZZ" in os.environ else [Phase.generate],
    print_blob=True,
)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzz")
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "hub")  # of each case
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        source = downloadable()["eurosat"]
        patch.setattr(source.dataset, "counts", None)
        patch.setattr(source.dataset, "n_classes", None)
        for file in source.files:  # of no published checksum
            change_file(patch, "eurosat", file.name, bytes=0, about=10**6, md5="", sha256="")
        yield Project(place)


@pytest.mark.parametrize("reader", READERS)
@several
@given(data=st.data())
def test_a_file_from_anybody_is_read_or_refused(reader, project, data):
    file, argv = READERS[reader]
    if reader not in project.accepted:  # otherwise its refusals show nothing
        project.accepted.add(reader)
        with project.copied():
            project.succeeds(argv)
    content = data.draw(content_of(project.base / file))
    with project.copied():
        put(Path(file), content)
        project.is_handled(argv)


@pytest.mark.parametrize("reader", CHECKED)
@several
@given(data=st.data())
def test_a_damaged_file_gives_no_other_result(reader, project, data):
    file, argv = READERS[reader]
    content = data.draw(damaged((project.base / file).read_bytes()))
    with project.copied():
        project.succeeds(argv)
        expected = {name: Path(name).read_bytes() for name in RESULTS if Path(name).exists()}
        shutil.rmtree("out", ignore_errors=True)
        put(Path(file), content)
        if project.is_handled(argv):
            assert {name: Path(name).read_bytes() for name in expected} == expected


MADE = (
    "predictions.npz",
    "tests.jsonl",
    "cmat.pt",
    "partial_test",
    "results.json",
    "studies/study/tables.md",
)


@pytest.mark.parametrize("folder", ["cut", "studied"])
@several
@given(data=st.data())
def test_no_link_or_pipe_in_a_folder_is_followed(folder, project, data):
    """Of a run that is resumed, and of a study."""
    names = [
        str(path.relative_to(project.base)) for path in sorted((project.base / folder).rglob("*"))
    ]
    place = data.draw(st.sampled_from([*names, *(f"{folder}/{name}" for name in MADE)]))
    argv = (
        RESUMED
        if folder == "cut"
        else ["study", data.draw(st.sampled_from(("tables", "status"))), "study.yaml"]
    )
    content = data.draw(st.sampled_from(SPECIAL))
    with project.copied():
        put(Path(place), content)
        project.is_handled([*argv, *(("TEST.COMPUTE_CMAT", "True") if folder == "cut" else ())])


NAMING = {f"stranger/{file}": STRANGER for file in (OPEN_CLIP, CONFIG, OPTIONS, TOKENS)}
NAMING |= {f"{CACHED_HUB}/{file}": FROM_HUB for file in (OPEN_CLIP, CONFIG, OPTIONS)}
NAMING["exported/config.json"] = ["predict", "exported", "image.png"]


@several
@given(data=st.data())
def test_what_a_configuration_names_is_not_looked_up(project, data, monkeypatch):
    """Text towers, models of timm, tokenisers, kernels, code, repositories: of a folder, a
    repository, an export.
    """
    file = data.draw(st.sampled_from([*NAMING]))
    with project.copied(), monkeypatch.context() as patch:
        patch.setattr(project.witness, "forbidden", ("evil", "outside/kept"))
        if file.startswith("hub/"):  # its owner is named by an option, and may be asked
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        else:
            patch.setattr(
                project.witness, "forbidden", (*project.witness.forbidden, "models--stranger")
            )
        content = data.draw(strange(of_json(Path(file))))
        put(Path(file), as_json(content))
        if data.draw(st.booleans()):  # then files that a configuration names are missing beside it
            Path(file).with_name(data.draw(st.sampled_from(("tokenizer.json", CONFIG)))).unlink(
                missing_ok=True
            )
        project.is_handled(NAMING[file])


@several
@given(data=st.data())
def test_settings_from_anybody_are_accepted_or_refused(project, data):
    cfg = get_cfg_default()
    extend_cfg(cfg, "MPL")
    keys = [
        key
        for key in flatten(cfg)
        if key.startswith("TRAINER.MPL.") or not key.startswith("TRAINER.")
    ]
    words = [name for name in NAMES if "\0" not in name] + [str(number) for number in NUMBERS]
    words += ["None", "[]", "()", "{}", "[[1]]", "True", "1.5", "[" * 3000, "[1, 'a']"]
    key = data.draw(st.sampled_from([*keys, "X.Y", "OPTIM", "OPTIM.LR.X"]))
    assume(key not in ("OUTPUT_DIR", "RESUME", "CACHE"))  # it is the user's choice where to write
    with project.copied():
        project.is_handled(
            [*argv_of("train MPL out --no-train"), key, data.draw(st.sampled_from(words))]
        )
