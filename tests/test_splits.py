"""Few-shot choices as files: CoOp's pickles and the .jsonl files of 2SFS."""

import hashlib
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
from dassl.data.datasets import Datum
from drawn import arguments
from hostile import CALLS
from marks import of_json

from datasets import splits
from datasets.preparing.sources import downloadable
from measures.results import RESULTS_FILE


@pytest.fixture
def written(prepare, eurosat, tmp_path):
    """The files of the choice of two images by seed 1, in a folder of their own."""
    ended = prepare.works("splits", "eurosat", "--shots", 2, root=eurosat)
    lines = [line.split("  ") for line in ended.printed.splitlines()[:-1]]
    assert ended.printed.splitlines()[-1] == "12 images of 6 classes to learn from"
    for digest, file in lines:
        assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == digest
    return [Path(shutil.copy(file, tmp_path)) for _, file in lines]


@pytest.fixture
def chosen(eurosat, prepare):
    """The images of the default sampler: paths below the folder of images, for `train` and
    `val`.
    """
    printed = prepare("fewshot", "eurosat", "--shots", 2, root=eurosat).printed.splitlines()
    return {
        part: [line.split(" ", 1)[1] for line in printed if line.startswith(part)]
        for part in ("train", "val")
    }


def test_files_have_the_images_of_the_default_sampler_in_their_published_forms(
    written, chosen, prepare, eurosat
):
    pkl, train, val = written
    assert [file.name for file in written] == [
        f"shot_2-seed_1{end}" for end in (".pkl", "_train.jsonl", "_val.jsonl")
    ]
    as_coop_reads_it = pickle.loads(pkl.read_bytes())
    assert all(type(item) is Datum for part in as_coop_reads_it.values() for item in part)
    names = {part: [item.impath for item in items] for part, items in as_coop_reads_it.items()}
    assert names == {
        part: [f"{eurosat}/eurosat/2750/{path}" for path in paths] for part, paths in chosen.items()
    }
    split = {
        path: (label, name)
        for path, label, name in of_json(eurosat / "eurosat/split_zhou_EuroSAT.json")["train"]
    }
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    assert [list(row) for row in rows] == [["_impath", "_label", "_domain", "_classname"]] * 12
    for row, path in zip(rows, chosen["train"], strict=True):
        assert (
            row["_impath"] == f"eurosat/2750/{path}"
            and (row["_label"], row["_classname"]) == split[path]
        )
    assert len(val.read_text().splitlines()) == 12
    lines = prepare(
        "fewshot", "eurosat", "--seed", 7, "--file", pkl, root=eurosat
    ).printed.splitlines()
    assert [line for line in lines if line.startswith("train")] == [
        f"train {path}" for path in chosen["train"]
    ]


@pytest.fixture
def refuses(prepare, eurosat):
    """`refuses(argument, ..., word)`: the command ends in one line with the word."""

    def refuses(*arguments):
        *options, word = arguments
        status, printed, errors = prepare("splits", "eurosat", *options, root=eurosat)
        # Messages of the read
        (line,) = (line for line in errors if not line.startswith(("EuroSAT has", "Creating")))
        assert (status, printed) == (2, "") and line.startswith("error: ") and word in line, errors

    return refuses


@pytest.mark.slow
def test_a_run_reads_what_was_written_and_its_card_names_the_file(
    written, chosen, launch, eurosat, tiny, tmp_path
):
    for file in written[:2]:
        found = downloadable()["eurosat"].read(
            eurosat, "DATASET.FEWSHOT_FILE", str(file), "DATASET.NUM_SHOTS", "2"
        )
        for part, items in (("train", found.train_x), ("val", found.val)):
            assert [item.impath for item in items] == [
                f"{eurosat}/eurosat/2750/{path}" for path in chosen[part]
            ]
    pattern = f"{tmp_path}/shot_{{shots}}-seed_{{seed}}_train.jsonl"
    argv = arguments(
        eurosat, tiny, tmp_path / "out", "DATASET.FEWSHOT_FILE", pattern, "OPTIM.MAX_EPOCH", 1
    )
    ended = launch.works(*argv)
    (fit,) = of_json(tmp_path / "out" / RESULTS_FILE)["data_use"]["fit"]
    assert (fit["file"], fit["images"]) == (str(written[1]), 12)
    assert fit["file_sha256"] == hashlib.sha256(written[1].read_bytes()).hexdigest()
    rows = [json.loads(line) for line in written[1].read_text().splitlines()]
    images = "".join(f"{row['_impath']}\0{row['_label']}\0{row['_classname']}\n" for row in rows)
    assert fit["sha256"] == hashlib.sha256(images.encode()).hexdigest()
    (tmp_path / "out" / RESULTS_FILE).unlink()
    written[1].write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    ended = launch(*argv)
    assert (
        ended.status == 2 and "are not those that the run to resume began with" in ended.errors[-1]
    )


def with_path(path):
    return lambda row: row.update(_impath=path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (with_path("/etc/passwd"), "/etc/passwd for train"),
        (with_path("eurosat/2750/0/\x1b[31m.png"), "without that image"),
        (with_path("eurosat/2750/0/test_0.png"), "the split for test"),
        (lambda row: row.update(_label=(row["_label"] + 1) % 6), "with the label"),
        (lambda row: row.pop("_impath"), "is not a few-shot choice"),
    ],
)  # fmt: skip
def test_foreign_rows_are_refused_in_both_forms(change, word, written, refuses, tmp_path):
    rows = [json.loads(line) for line in written[1].read_text().splitlines()]
    change(rows[3])
    (tmp_path / "a_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [Datum() for _ in rows]
    for item, row in zip(data, rows, strict=True):
        vars(item).clear()
        vars(item).update(row)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": data}, protocol=4))
    for file in ("a_train.jsonl", "a.pkl"):
        refuses("--file", tmp_path / file, word)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04" + b"]" * 10_000 + b".",
        *(pickle.dumps(call) for call in CALLS),
        *(
            pickle.dumps(value)
            for value in ([], {"train": []}, {"train": [1]}, {1: 2}, {"train": {}}, None)
        ),
        pickle.dumps({"train": [Datum()] * 1000}),
    ],
)
def test_damaged_and_hostile_pickles_are_refused(content, refuses, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(content)
    refuses("--file", tmp_path / "bad.pkl", "bad.pkl is not a few-shot choice")


def test_killed_command_leaves_no_file_after_the_next_one(prepare, eurosat, tmp_path):
    """A partial file stayed."""
    shutil.copytree(eurosat, tmp_path / "data", ignore=shutil.ignore_patterns(splits.FOLDER))
    process = os.fork()
    if not process:
        splits.write_bytes = lambda file, content: (
            file.write_bytes(content[:9]),
            os.kill(os.getpid(), signal.SIGKILL),
        )
        prepare("splits", "eurosat", "--shots", 2)
        os._exit(0)  # not reached
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    folder = tmp_path / "data/eurosat/split_fewshot"
    assert not list(folder.glob("shot*"))
    prepare.works("splits", "eurosat", "--shots", 2)
    names = [f"shot_2-seed_1{end}" for end in (".pkl", "_train.jsonl", "_val.jsonl")]
    assert sorted(path.name for path in folder.iterdir()) == names
    prepare.works("splits", "eurosat", "--file", folder / names[0])


def test_a_choice_has_every_class_and_the_runs_number_of_images(
    written, refused, eurosat, tiny, tmp_path
):
    def run(*settings):
        return arguments(
            eurosat, tiny, tmp_path / "out", *settings, "DATASET.FEWSHOT_FILE", written[1]
        )

    refused(run("DATASET.NUM_SHOTS", 4), "has 2 images of", "DATASET.NUM_SHOTS 4 means 4")
    lines = written[1].read_text().splitlines(keepends=True)
    written[1].write_text("".join(lines[:-2]))
    refused(run(), "has no image for train of the class")
    written[1].write_text("".join([*lines, lines[0]]))
    refused(run("DATASET.NUM_SHOTS", -1), "twice")


def test_another_form_of_the_same_choice_stays_as_it_is(prepare, refuses, written, eurosat):
    """CoOp's own file was refused, whose pickle has another protocol."""
    file = eurosat / "eurosat/split_fewshot/shot_2-seed_1.pkl"
    rows = pickle.loads(written[0].read_bytes())
    file.write_bytes(content := pickle.dumps(rows, protocol=5))
    ended = prepare.works("splits", "eurosat", "--shots", 2, root=eurosat)
    assert file.read_bytes() == content
    assert ended.printed.startswith(f"{hashlib.sha256(content).hexdigest()}  {file}\n")
    rows["train"] = rows["train"][::-1]
    file.write_bytes(pickle.dumps(rows))
    refuses("--shots", 2, "exists and has another choice")
    file.unlink()
