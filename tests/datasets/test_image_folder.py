"""The user's own images: layouts, names, seeded splits, and the examples of docs/datasets.md."""

import re
import shutil

import pytest
import torch
from dassl.data.datasets import build_dataset
from drawn import arguments, make_cfg
from marks import of_json, one_line, to_json
from trees import write_image

from common.results import read_results
from common.start import ROOT
from datasets import DatasetError, splits
from datasets.preparing import command as preparing
from measures.results import summary_line
from runs.session import run_command

pytestmark = pytest.mark.slow

BIRDS = ("blue_tit", "house_sparrow", "robin")


def folders(parent, size, classes=BIRDS):
    first = {"test": 10, "val": 20}.get(parent.name, 0)  # so that no two images are equal
    for label, name in enumerate(classes):
        for number in range(size):
            write_image(parent / name / f"{number}.jpg", 100 * label + first + number)


@pytest.fixture
def birds(tmp_path):
    """A folder with 3 images a class to learn from and 2 to test on."""
    folders(tmp_path / "birds/train", 3)
    folders(tmp_path / "birds/test", 2)
    return tmp_path / "birds"


@pytest.fixture
def unsplit(tmp_path):
    """A folder with 10 images a class."""
    folders(tmp_path / "birds", 10)
    return tmp_path / "birds"


def load(root, *overrides):
    return build_dataset(make_cfg("CoOp", root, "", "", "DATASET.NAME", "ImageFolder", *overrides))


def sizes(data):
    return len(data.train_x), data.val and len(data.val), len(data.test)


def test_train_val_and_test_folders(birds):
    data = load(birds)
    assert (sizes(data), data.classnames) == ((9, None, 6), ["blue tit", "house sparrow", "robin"])
    assert data.test[2].impath == f"{birds}/test/house_sparrow/0.jpg" and data.test[2].label == 1
    folders(birds / "val", 1, ["robin"])
    new = load(birds, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 2)
    assert (sizes(new), new.classnames, new.val[0].label) == ((2, 1, 2), ["robin"], 0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "classnames.txt",
            "robin European robin\nblue_tit   blue tit \nhouse_sparrow sparrow\nwren not here\n",
        ),
        # By Notepad
        (
            "classnames.txt",
            "\ufeffblue_tit blue tit\r\nhouse_sparrow sparrow\r\nrobin European robin",
        ),
    ],
)
def test_file_of_class_names(file, text, birds, capsys):
    (birds / file).write_text(text, encoding="utf-8")
    assert load(birds).classnames == ["blue tit", "sparrow", "European robin"]
    assert f"Class names: {birds / file}" in capsys.readouterr().out


def test_inconsistent_folders_are_rejected(birds, tmp_path):
    def refused(words, folder, *settings):
        with one_line(words, error=DatasetError):
            load(folder, *settings)

    refused(f"no folder {tmp_path}/nowhere: ", tmp_path / "nowhere")
    folders(birds / "test", 1, ["wren"])
    refused("has images for validation or test, and none for training", birds)
    (birds / "train/wren").mkdir()
    refused(f"no images in {birds}/train/wren", birds)
    refused("already has folders train and test", birds, "DATASET.SPLIT_SEED", 1)
    shutil.rmtree(birds / "test")
    refused(f"no folders train and test in {birds}: ", birds)


def test_seeded_split_is_saved_and_reused(unsplit, capsys):
    with pytest.raises(DatasetError, match="DATASET.SPLIT_SEED 1"):
        load(unsplit)
    first = load(unsplit, "DATASET.SPLIT_SEED", 1)
    assert sizes(first) == (15, 6, 9)
    assert [sum(item.label == label for item in first.test) for label in range(3)] == [3, 3, 3]
    paths = {item.impath for part in (first.train_x, first.val, first.test) for item in part}
    assert paths == set(map(str, unsplit.rglob("*.jpg")))
    file = unsplit / "split_seed1.json"
    assert f"Saved as {file}; later runs use it" in capsys.readouterr().out
    assert [path for path in unsplit.iterdir() if path.is_file()] == [file]

    (unsplit / splits.FOLDER).mkdir()  # CoOp's
    write_image(unsplit / "robin/later.jpg", 0)  # is not in the split
    again = load(unsplit, "DATASET.SPLIT_SEED", 1)
    other = load(unsplit, "DATASET.SPLIT_SEED", 2)
    assert [item.impath for item in again.test] == [item.impath for item in first.test]
    assert {item.impath for item in other.test} != {item.impath for item in first.test}


def test_later_images_are_named_and_added_by_a_command(unsplit, prepare_own, capsys):
    """Images of the saved split keep their part; the new ones fill the parts up. A class may be
    new, or gone.
    """
    seed = ("DATASET.SPLIT_SEED", 1)
    file = unsplit / "split_seed1.json"
    load(unsplit, *seed)
    before = of_json(file)
    for number in range(10):
        write_image(unsplit / f"robin/2023/{number}.jpg", 50 + number)
    load(unsplit, *seed)
    what = (
        f"10 images in {unsplit} are not in split_seed1.json, such as "
        f"{unsplit}/robin/2023/0.jpg: they are not used"
    )
    assert (
        f"{what}. Bring the split up to date: python tools/prepare.py --add {unsplit}\n"
        in capsys.readouterr().out
    )
    folders(unsplit, 10, ["wren"])
    shutil.rmtree(unsplit / "blue_tit")
    ended = prepare_own("--add", unsplit)
    assert (
        ended.status == 0
        and f"{file}: 20 images are new (10 train, 4 val, 6 test), 10 are gone\n" in ended.printed
    )
    after = load(unsplit, *seed)
    assert (sizes(after), after.classnames) == ((20, 8, 12), ["house sparrow", "robin", "wren"])
    now = {part: {path for path, *_ in rows} for part, rows in of_json(file).items()}
    for part, rows in before.items():
        assert {path for path, *_ in rows if "blue_tit" not in path} <= now[part]


@pytest.fixture
def prepare_own(ended):
    """tools/prepare.py."""
    return lambda *arguments: ended(
        lambda: run_command(lambda: preparing.main([str(word) for word in arguments]))
    )


def test_check_of_a_folder_points_to_fit(birds, prepare_own):
    ended = prepare_own("--check", birds)
    assert ended.status == 2 and f"python tools/fit.py {birds} names its faults" in ended.errors[-1]


@pytest.mark.parametrize("names", [[], ["nowhere"], ["eurosat"]])
def test_images_are_added_to_a_folder_alone(names, prepare_own):
    ended = prepare_own("--add", *names)
    assert ended.status == 2 and "--add takes folders of your own images" in ended.errors[-1]


# docs/datasets.md

DOCUMENT = (ROOT / "docs/datasets.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_own_images_have_the_name_of_their_yaml_file(birds, tiny, tmp_path, launch):
    """In results.json, in checkpoints and in messages; a run of before, with "ImageFolder", still
    counts.
    """
    yaml = tmp_path / "birds.yaml"
    out = tmp_path / "out"
    yaml.write_text(blocks("yaml")[0])
    few = ["OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1]
    argv = arguments(
        birds, tiny, out, *few, options=["--dataset-config-file", yaml, "--skip-finished"]
    )
    launch.works(*argv)
    found = of_json(out / "results.json")
    assert found["dataset"] == "birds" and summary_line(read_results(out)).startswith(
        "MPL on birds 1 shots"
    )
    checkpoint = torch.load(out / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)
    assert checkpoint["metadata"]["dataset"] == "birds"
    for recorded, status in (("birds", 0), ("ImageFolder", 0), ("EuroSAT", 2)):
        to_json(out / "results.json", found | {"dataset": recorded})
        assert launch(*argv).status == status
    tests = ["--eval-only", "--model-dir", out, "--dataset-config-file", yaml]
    launch.works(
        *arguments(birds, tiny, tmp_path / "named", "DATASET.TITLE", "my birds", options=tests)
    )
    assert of_json(tmp_path / "named/results.json")["dataset"] == "my birds"
