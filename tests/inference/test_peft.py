"""Adapters in PEFT's format: those of the published CLIP-LoRA, and those that PEFT itself writes."""

import re
import shutil

import pytest
import torch
from harness import build, images_of
from learned import images_of as images_of_dataset
from marks import case_of, golden, of_json, one_line, to_json
from safetensors.torch import load_file, save_file

from inference import export, peft, peft_export, predict
from inference.classifier import PromptedClassifier
from inference.description import describe
from inference.load import load
from inference.options import LoadOptions

NAMES = ["red", "green field", "blue"]


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda figures: "peft" in case_of(figures))


def classifier_of(trainer):
    """The trainer's model as a classifier."""
    state = trainer.method.saved_module().state_dict()
    metadata = trainer.checkpoint_metadata()
    checkpoint = {"state_dict": state, "epoch": 1, "metadata": metadata}
    description = describe(trainer.cfg, checkpoint, {})
    options = LoadOptions(backbone=trainer.cfg.MODEL.BACKBONE.NAME)
    return PromptedClassifier(description, checkpoint, "the run", options, trainer.model.frozen)


@pytest.fixture
def learn(backbones, tmp_path):
    """`learn(**settings)`: a classifier of CLIPLoRA with weights of the recipe."""
    return lambda arch, names=NAMES, **settings: classifier_of(
        build("CLIPLoRA", "fast", settings, arch, names, {}, backbones, tmp_path)
    )


def test_golden_files_of_peft(figures, learn, tmp_path, request):
    source = request.config.getoption("golden") / f"{case_of(figures)['from']}.json"
    case = of_json(source)["case"]
    settings = case["cfg"] | {"DROPOUT_RATE": 0.25}
    classifier = learn(case["arch"], case["classnames"], **settings)
    expected = figures["transformers"]
    peft_export.write(classifier, [], tmp_path / peft.TENSORS)
    config = of_json(tmp_path / peft.CONFIG)
    assert {key: config[key] for key in expected["config"]} == expected["config"]
    tensors = load_file(tmp_path / peft.TENSORS)
    assert tensors.keys() == expected["tensors"].keys()
    for key, tensor in tensors.items():
        of_key = expected["tensors"][key]
        assert list(tensor.shape) == of_key["shape"]
        assert tensor.norm().item() == pytest.approx(of_key["norm"], rel=1e-5, abs=1e-7)
        first = tensor.flatten()[:4].tolist()
        assert first == pytest.approx(of_key["first4"], abs=1e-6)
    backbone = classifier.cfg.MODEL.BACKBONE.NAME
    again = load(tmp_path, LoadOptions(backbone=backbone, class_names=case["classnames"]))
    logits = again.logits(images_of(case["batch"], case["arch"]["image_resolution"]))
    assert torch.allclose(logits, torch.tensor(expected["logits_before"]), atol=3e-5)


ARCH = {"image_resolution": 32, "patch_size": 16, "vision_layers": 3, "text_layers": 2}
ARCH["widths"] = 128, 128, 64  # of the image tower, of the text tower and of both


class Adapter:
    """A folder of PEFT's form, its tensors, and the options to load it."""

    def __init__(self, classifier, folder):
        self.folder = folder
        folder.mkdir()
        peft_export.write(classifier, [], folder / peft.TENSORS)
        self.state = load_file(folder / peft.TENSORS)
        self.options = LoadOptions(backbone=classifier.cfg.MODEL.BACKBONE.NAME, class_names=NAMES)

    def load(self):
        return load(self.folder, self.options)

    def save(self, state, **values):
        """Other tensors, and changes of the configuration."""
        save_file(state, self.folder / peft.TENSORS)
        file = self.folder / peft.CONFIG
        to_json(file, of_json(file) | values)


@pytest.fixture(scope="module")
def learned(backbones, tmp_path_factory):
    place = tmp_path_factory.mktemp("learned")
    settings = "CLIPLoRA", "fast", {"R": 2}, ARCH, NAMES, {}
    return classifier_of(build(*settings, backbones, place))


@pytest.fixture
def adapter(learned, tmp_path):
    return Adapter(learned, tmp_path / "adapter")


def test_peft_reads_the_configuration_and_what_it_saves_is_a_model(adapter):
    library_of_peft = pytest.importorskip("peft")
    expected = adapter.load().logits(images_of(2, 32))
    own = of_json(adapter.folder / peft.CONFIG)
    library_of_peft.LoraConfig.from_pretrained(adapter.folder).save_pretrained(adapter.folder)
    assert len(of_json(adapter.folder / peft.CONFIG)) > len(own)
    assert torch.equal(adapter.load().logits(images_of(2, 32)), expected)


def test_some_layers_with_other_ranks_are_a_model(adapter):
    expected = adapter.load()
    kept = {key: value for key, value in adapter.state.items() if ".1." in key and "text" in key}
    more = {key: torch.cat([value, value], int("lora_B" in key)) for key, value in kept.items()}
    adapter.save(more, r=8, lora_alpha=3, use_rslora=False, rank_pattern={"text": 4})
    classifier = adapter.load()
    learned = classifier._own.model.prompt_learner.extra_modules
    found = torch.cat([lora.q_proj.w_lora_B @ lora.q_proj.w_lora_A for lora in learned.values()])
    before = expected._own.model.prompt_learner.extra_modules["layer_1"].q_proj
    assert classifier._own.settings.R == 4 and classifier._own.settings.ENCODER == "text"
    scale = learned["layer_1"].scale
    product = 2 * 3 / 4 * before.w_lora_B @ before.w_lora_A
    assert torch.allclose(scale * found, torch.cat([0 * product, product]), atol=1e-6)


REFUSED = {
    "DoRA": ({}, {"lora_magnitude_vector": (64,)}, "more than low-rank maps of attention"),
    "an MLP": ({}, {"lora_A.weight": (2, 64)}, "more than low-rank maps of attention"),
    "biases": ({"bias": "all"}, {}, "bias 'all'"),
    "another kind": ({"peft_type": "IA3"}, {}, "peft_type 'IA3'"),
    "scales": ({"alpha_pattern": {"q_proj": 4}}, {}, "alpha_pattern"),
    "a rank": ({"r": 0}, {}, "r is 1 to 1024"),
    "DoRA in words": ({"use_dora": True}, {}, "has use_dora"),
    "a head": ({"modules_to_save": ["classifier"]}, {}, "has modules_to_save"),
}
DAMAGED = {  # tensors of a map by the ends of their names
    "zero rank": {"lora_A": torch.zeros(0, 128), "lora_B": torch.zeros(128, 0)},
    "no matrix": {"lora_A": torch.tensor(1.0)},
    "float8": {"lora_A": torch.zeros(2, 128).to(torch.float8_e4m3fn)},
    "whole numbers": {"lora_A": torch.ones(2, 128, dtype=torch.int64)},
    "B alone": {"lora_A": None},
    "A alone": {"lora_B": None},
}


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_map_prints_one_line(case, adapter):
    place = f"{peft.PREFIX}text_model.encoder.layers.0.self_attn.q_proj"
    state = adapter.state | {f"{place}.{half}.weight": tensor for half, tensor in case.items()}
    adapter.save({key: tensor for key, tensor in state.items() if tensor is not None})
    with one_line("copy it again"):
        adapter.load()


@pytest.mark.parametrize(
    ("pattern", "name"),
    {
        r"(vision|text)_model\.": "",  # as PEFT saves an adapter of an image tower alone
        r"text_model\.encoder\.layers": "transformer.resblocks",  # of open_clip
    }.items(),
)
def test_maps_of_another_model_print_one_line(pattern, name, adapter):
    adapter.save({re.sub(pattern, name, key): value for key, value in adapter.state.items()})
    with one_line("holds more than low-rank maps of attention", "transformers' CLIP"):
        adapter.load()


def test_an_adapter_without_changes_is_zero_shot_clip(adapter):
    adapter.save({key: value * ("lora_B" not in key) for key, value in adapter.state.items()})
    images = images_of(2, 32)
    found = adapter.load()
    plain = found.clip.encode_image(images, True)
    torch.testing.assert_close(found.model_for().image_features(images), plain)
    (adapter.folder / peft.TENSORS).unlink()
    with one_line("cannot read"):
        adapter.load()


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_more_than_lora_is_refused(case, adapter):
    values, tensors, words = case
    place = f"{peft.PREFIX}text_model.encoder.layers.0.mlp.fc1"
    more = {f"{place}.{key}": torch.zeros(shape) for key, shape in tensors.items()}
    adapter.save(adapter.state | more, **values)
    with one_line(words):
        adapter.load()


def test_an_adapter_of_another_backbone_is_refused(adapter, tiny):
    state = adapter.state
    adapter.save({key.replace("layers.1", "layers.7"): value for key, value in state.items()})
    with one_line("changes layer 7 of the"):
        adapter.load()
    adapter.save(state)
    for backbone, words in {str(tiny): "has width 64", "": "give it by --backbone"}.items():
        adapter.options = LoadOptions(backbone=backbone, class_names=NAMES)
        with one_line(words):
            adapter.load()
    adapter.save(state, base_model_name_or_path="/etc/passwd")
    with one_line("adapts the model '/etc/passwd'"):
        adapter.load()


def test_the_commands_write_and_read_adapters(
    finished, command, launch, argv, deep, eurosat, tmp_path
):
    steps = "TRAINER.CLIPLORA.N_ITERS", 4, "TRAINER.CLIPLORA.PREC", "fp32"
    run = finished("CLIPLoRA", "base", *steps)
    out = tmp_path / "out"
    done = command.works(export, run, "--to", out, "--peft")
    assert peft.TENSORS in done.printed
    assert "an adapter of PEFT for the CLIP of transformers" in (out / "README.md").read_text()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in (peft.CONFIG, peft.TENSORS):
        shutil.copy(out / name, adapter)
    images = images_of_dataset(eurosat, range(6))
    options = LoadOptions(backbone=str(deep), class_names=["grey", "red"])
    expected = load(run).logits(images, ["grey", "red"])
    torch.testing.assert_close(load(adapter, options).logits(images), expected)
    error = command(predict, adapter, *images, "--backbone", deep).error
    assert f"{adapter} holds no class names" in error
    words = "--backbone", deep, "--classes", "grey", "red"
    command.works(predict, adapter, *images, *words)
    # A test and a training start from its exported folder
    again = tmp_path / "again"
    command.works(export, adapter, "--to", again, *words)
    refused, tested = (
        argv("CLIPLoRA", *steps, backbone=deep, options=["--eval-only", "--model-dir", model])
        for model in (adapter, again)
    )
    assert "is an adapter of PEFT: make it a model by tools/export.py" in launch(*refused).error
    launch.works(*tested)
    start = "MODEL.INIT_WEIGHTS", again / "prompts.safetensors"
    trained = launch.works(*argv("CLIPLoRA", *steps, *start, backbone=deep, output="trained"))
    assert "Successfully loaded pretrained weights" in trained.printed
