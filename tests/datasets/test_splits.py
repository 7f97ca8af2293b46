"""Few-shot choices: CoOp's pickles, and images that are held out."""

import hashlib
import pickle

import pytest
from dassl.data.datasets import Datum
from drawn import arguments
from hostile import CALLS
from marks import of_json

from common.errors import UsageError
from datasets.preparing.sources import downloadable
from measures.results import RESULTS_FILE


def pickled(parts):
    """As CoOp writes them, with the paths of another machine."""
    choice = {}
    for part, rows in parts.items():
        choice[part] = [Datum() for _ in rows]
        for item, row in zip(choice[part], rows, strict=True):
            vars(item).clear()
            vars(item).update(row)
    return pickle.dumps(choice, protocol=5)


@pytest.fixture
def rows(eurosat):
    """What CoOp writes about the images of the default sampler, two of each class by seed 1."""
    dataset = downloadable()["eurosat"].read(eurosat, "DATASET.NUM_SHOTS", "2")
    parts = {"train": dataset.train_x, "val": dataset.val}
    rows = {part: [dict(vars(item)) for item in items] for part, items in parts.items()}
    for row in (row for part in rows.values() for row in part):
        row["_impath"] = row["_impath"].replace(str(eurosat), "/home/kaiyang/data")
    return rows


@pytest.fixture
def write(tmp_path):
    def write(rows, name="shot_2-seed_1.pkl"):
        file = tmp_path / name
        file.write_bytes(pickled(rows))
        return file

    return write


@pytest.fixture
def refuses(prepare, eurosat):
    """`refuses(file, word)`: the command ends in one line with the word."""

    def refuses(file, word):
        status, printed, errors = prepare("fewshot", "eurosat", "--file", file, root=eurosat)
        # Messages of the read
        (line,) = (line for line in errors if not line.startswith(("EuroSAT has", "Creating")))
        assert (status, printed) == (2, "") and line.startswith("error: ") and word in line, errors

    return refuses


@pytest.mark.slow
def test_a_run_reads_the_images_of_coops_file_and_its_card_names_the_file(
    rows, write, prepare, launch, eurosat, tiny, tmp_path
):
    rows["train"].reverse()
    file = write(rows)
    listed = [
        f"{part} {row['_impath'].partition('/2750/')[2]}" for part in rows for row in rows[part]
    ]
    ended = prepare("fewshot", "eurosat", "--seed", 7, "--file", file, root=eurosat)
    assert ended.printed.splitlines() == listed
    pattern = f"{tmp_path}/shot_{{shots}}-seed_{{seed}}.pkl"
    argv = arguments(
        eurosat, tiny, tmp_path / "out", "DATASET.FEWSHOT_FILE", pattern, "OPTIM.MAX_EPOCH", 1
    )
    launch.works(*argv)
    (fit,) = of_json(tmp_path / "out" / RESULTS_FILE)["data_use"]["fit"]
    assert (fit["file"], fit["images"]) == (str(file), 12)
    assert fit["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "out" / RESULTS_FILE).unlink()
    rows["train"].reverse()
    write(rows)
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
def test_foreign_rows_are_refused(change, word, rows, write, refuses):
    change(rows["train"][3])
    refuses(write(rows), word)


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
    refuses(tmp_path / "bad.pkl", "bad.pkl is not a few-shot choice")


def test_a_choice_has_every_class_and_the_runs_number_of_images(
    rows, write, refused, eurosat, tiny, tmp_path
):
    def run(*settings):
        file = tmp_path / "shot_2-seed_1.pkl"
        return arguments(eurosat, tiny, tmp_path / "out", *settings, "DATASET.FEWSHOT_FILE", file)

    write(rows)
    refused(run("DATASET.NUM_SHOTS", 4), "has 2 images of", "DATASET.NUM_SHOTS 4 means 4")
    write(rows | {"train": rows["train"][:-2]})
    refused(run(), "has no image for train of the class")
    write(rows | {"train": [*rows["train"], rows["train"][0]]})
    refused(run("DATASET.NUM_SHOTS", -1), "twice")


def test_splits_was_removed(prepare):
    line = prepare("splits", "eurosat").error
    assert "splits was removed: prepare.py fewshot prints the images of a run" in line


@pytest.mark.slow
def test_held_out_images_are_a_shot_of_the_training_images(build):
    def images(*options):
        dataset = build("CoOp", "all", options=options).dm.dataset
        return [
            {item.impath for item in part} for part in (dataset.train_x, dataset.val, dataset.test)
        ]

    train, _, test = images()
    kept, held, tested = images("DATASET.HOLD_OUT", True)
    assert (
        kept | held == train and not kept & held and len(kept) == len(held) == 6 and tested == test
    )
    with pytest.raises(
        UsageError,
        match="HOLD_OUT leaves class '.*' of EuroSAT without training images: give two or",
    ):
        images("DATASET.HOLD_OUT", True, "DATASET.NUM_SHOTS", 1)


def test_wrong_labels_are_those_of_the_seed_and_in_the_results(launch, eurosat, deep, tmp_path):
    options = "DATASET.NOISE_RATE", 0.5, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1
    line = arguments(eurosat, deep, tmp_path / "run", *options, trainer="CoOp", config="small")
    assert "Wrong labels: 6 of 12 training images" in launch.works(*line).printed
    (phase,) = of_json(tmp_path / "run/results.json")["data_use"]["fit"]
    assert phase["wrong_labels"] == 6 and phase["labels"] == 12
    again = arguments(eurosat, deep, tmp_path / "again", *options, trainer="CoOp", config="small")
    launch.works(*again)
    (same,) = of_json(tmp_path / "again/results.json")["data_use"]["fit"]
    assert same["sha256"] == phase["sha256"]
    unseeded = arguments(eurosat, deep, tmp_path / "none", *options, options=["--seed", -1])
    assert "there is no seed" in launch(*unseeded).error
