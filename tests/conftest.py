import gc
import io
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

# A shell ignores SIGINT in what it starts in the background, and Python then leaves it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # while the tests are imported, with libraries of a million objects


def pytest_collection_modifyitems(items):
    """Tests with an audit hook come late, as it stays: copies take twice the time in its process.
    Others follow, so that no process waits for the end of these.
    """
    hooked = "test_fuzz.py", "test_strangers.py"
    last = ("studies", "trainers")
    items.sort(key=lambda item: 2 * (item.path.parent.name in last) + (item.path.name in hooked))


def pytest_collection_finish(session):
    gc.freeze()
    gc.set_threshold(10_000)  # collections take seconds of a suite that leaves little garbage
    gc.enable()


def pytest_addoption(parser):
    golden = ROOT / "tests/golden"
    parser.addoption(
        "--golden",
        type=Path,
        default=golden,
        help="folder of the published implementations' figures",
    )
    parser.addoption(
        "--random-seed", type=int, help="seed of the random tests (default: another one each time)"
    )


def pytest_configure(config):
    if config.option.random_seed is None:  # before pytest-xdist hands its options to its processes
        config.option.random_seed = time.time_ns() % 2**32
    # A process that only hands out tests needs no fixtures and no torch
    if config.getoption("dist", "no") == "no":
        for module in ("running", "caching"):
            config.pluginmanager.import_plugin(module)


def pytest_ignore_collect(collection_path, config):
    """Modules of slow tests alone are not even imported where these are left out: their libraries
    take seconds.
    """
    if config.option.markexpr.startswith("not slow") and collection_path.match("test_*.py"):
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """As many as there are cores for this process: with more they wait for each other's memory."""
    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return int(given) if given else cores


def pytest_report_header(config):
    return f"random seed: {config.option.random_seed} (--random-seed repeats it)"


@pytest.fixture
def random_seed(request):
    """The seed of a random test; pytest shows it with a failure."""
    seed = request.config.option.random_seed
    print(f"random seed: {seed}")
    return seed


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory):
    """Caches of the tests' own, and one thread: small models gain nothing from more, and forks need
    it. Copies of a backbone share the memory of its weights, as far as nobody writes to these.
    """
    import torch
    from copying import copy_of

    from clip import building, keep_backbones

    def sharing_copy(model):
        shared = {}
        for weight in model.parameters():
            shared[id(weight)] = torch.nn.Parameter(
                torch._lazy_clone(weight.detach()), weight.requires_grad
            )
        return copy_of(model, shared)

    torch.set_num_threads(1)
    keep_backbones(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "deepcopy", sharing_copy)
        # No test cuts the power, and a busy disk takes its time
        patch.setattr(os, "fsync", lambda file: None)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """`shared(name)` -> a folder that all processes of the tests have in common."""

    def shared(name: str) -> Path:
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
        folder.mkdir(exist_ok=True)
        return folder

    return shared


@pytest.fixture(scope="session")
def backbones(shared):
    """`backbones(image_size=64, vision_layers=4, ...)` -> path of a random CLIP's file, written
    once for each size: safetensors are read without a copy.
    """
    from safetensors.torch import load_file, save_file

    from clip import random_weights
    from clip.building import empty_clip

    folder = shared("backbones")
    new = random_weights.random_tensor

    def file(
        image_size=64,
        patch_size=16,
        vision_layers=4,
        text_layers=4,
        vision_width=768,
        text_width=512,
        embed=512,
    ):
        key = (image_size, patch_size, vision_layers, text_layers, vision_width, text_width, embed)
        path = folder / f"{'-'.join(map(str, key))}.safetensors"
        with FileLock(folder / "lock"), pytest.MonkeyPatch.context() as patch:
            if not path.exists():
                # A tensor depends on its name and shape alone: files of other sizes have most of
                # them.
                old = {
                    (name, tensor.shape): tensor
                    for file in folder.glob("*.safetensors")
                    for name, tensor in load_file(file).items()
                }
                patch.setattr(
                    random_weights, "random_tensor", lambda *of: old[of] if of in old else new(*of)
                )
                # The constructor's own numbers take longer than those that replace them
                patch.setattr(random_weights, "CLIP", lambda **config: empty_clip(config, "fp32"))
                vision = {"image_size": image_size, "patch_size": patch_size}
                vision |= {"layers": vision_layers, "width": vision_width}
                text = {"width": text_width, "layers": text_layers}
                model = random_weights.random_clip("ViT-B-16", vision, text, embed)
                save_file(model.state_dict(), path)
        return path

    return file


@pytest.fixture(scope="session")
def tiny(backbones):
    """A backbone for tests of everything but numbers: 32 px, 4 layers, width 64."""
    return backbones(32, 16, 4, 4, 64, 64, 64)


@pytest.fixture(scope="session")
def deep(backbones):
    """A backbone as deep as the published settings need; CoCoOp's network has 16 hidden units on
    it.
    """
    return backbones(32, 16, 12, 12, 64, 64, 256)


@pytest.fixture(scope="session")
def eurosat(tmp_path_factory):
    """A root with a small stand-in for EuroSAT in its own layout: 6 classes, 8 / 4 / 4 images
    each.
    """
    from drawn import write_eurosat

    root = tmp_path_factory.mktemp("data")
    write_eurosat(
        root,
        ["red", "green field", "blue_lake", "grey", "white snow", "black"],
        train=8,
        val=4,
        test=4,
    )
    return root


@pytest.fixture
def build(eurosat, deep, tmp_path):
    """`build("CoOp", "base", "N_CTX", 4, ...)` -> a trainer in fp32 for 3 epochs; settings are
    those of its method.

    It is on the CPU, also where there is a GPU: its tests compare it with formulas.
    """
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed
    from drawn import make_cfg, section_pairs

    def build(method, classes="all", *settings, backbone=deep, output="run", options=()):
        pairs = {"PREC": "fp32"} | dict(zip(settings[::2], settings[1::2], strict=True))
        settings = section_pairs(method, pairs)
        few = [
            "USE_CUDA",
            False,
            "DATASET.NUM_SHOTS",
            2,
            "OPTIM.MAX_EPOCH",
            3,
            "DATASET.SUBSAMPLE_CLASSES",
            classes,
        ]
        set_random_seed(1)
        return build_trainer(
            make_cfg(method, eurosat, backbone, tmp_path / output, *few, *settings, *options)
        )

    return build


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in(name)`: a dataset keeps its name and template, and has images in EuroSAT's
    layout.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    eurosat = DATASET_REGISTRY.get("EuroSAT")

    def stand_in(name):
        template = DATASET_REGISTRY.get(name).template
        kind = type(name, (eurosat,), {"template": template})
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, name, kind)

    return stand_in


@pytest.fixture(scope="session")
def finished(eurosat, deep, tmp_path_factory):
    """`finished("MPL", "base", KEY, VALUE, ...)` -> the output folder of a finished run, made once.

    `tests` is the folder of a run whose prompts it tests, without training. `backbone` is by
    default `deep`.
    """
    from drawn import sentences_of
    from learned import NAMES, train_run

    root = tmp_path_factory.mktemp("runs")
    done = {}

    def finished(method, classes="base", *overrides, tests=None, backbone=deep):
        key = str((method, classes, overrides, tests, backbone))
        if key not in done:
            options = ["--eval-only", "--model-dir", tests] if tests else []
            done[key] = root / str(len(done))
            overrides = ("DATASET.SUBSAMPLE_CLASSES", classes, *overrides)
            if method in ("HiCroPL", "MMApp"):
                overrides += ("DATASET.SENTENCES", sentences_of(NAMES, root))
            train_run(done[key], eurosat, backbone, method, *overrides, options=options)
        return done[key]

    return finished


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """A folder that tools/export.py wrote, of CoOp's prompts."""
    from inference import export

    folder = tmp_path_factory.mktemp("exported") / "coop"
    with redirect_stdout(io.StringIO()):
        export.main([str(finished("CoOp")), "--to", str(folder), "--weights"])
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with five images, in a folder below too, and with other files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    (folder / ".hidden").mkdir()
    for number, name in enumerate(
        ["b.png", "a.jpg", "below/c.PNG", "d.webp", "e f.bmp", ".g.png", ".hidden/h.png"]
    ):
        Image.new("RGB", (40 + number, 50), (40 * number, 100, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


# Studies


@pytest.fixture(scope="session")
def drawn(shared):
    """A data folder with the demo's set in it, `small_objects`; others draw themselves there."""
    from datasets.small_world import SmallObjects

    root = shared("drawn")
    SmallObjects.prepare(root / "small_objects")
    return root


@pytest.fixture
def study_file(shared, tmp_path):
    """`study_file(output, **settings)` -> a file of four runs of some seconds each."""

    def study_file(output: str, **settings) -> Path:
        quick = {"OPTIM.MAX_EPOCH": 2, "TRAIN.CHECKPOINT_FREQ": 1, "DATALOADER.NUM_WORKERS": 0}
        content = {
            "protocols": ["base2new"],
            "trainers": {name: {"config": "small", "overrides": quick} for name in ("CoOp", "MPL")},
            "datasets": ["small_land"],
            "seeds": [1],
            "shots": 4,
            "root": str(shared("drawn")),
            "output": str(tmp_path / output),
        }
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump(content | settings))
        return file

    return study_file


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """After a file of tests: what its fixtures and commands imported stays and is not looked at
    again; models of its runs go.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
