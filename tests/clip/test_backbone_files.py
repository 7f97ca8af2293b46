"""Backbones are read exactly, in little memory; special files and invalid tensors are refused in
one line.
"""

import os
import socket

import open_clip
import pytest
import torch
from drawn import clip_config, features, small_clip
from marks import one_line, to_json
from safetensors.torch import save_file
from weight_files import SIZES, Hostile, refused, save_as_openai

import clip
from clip import building, weights
from common.files import checksum

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


# ---------------------------------------------------------------- sound files


@pytest.fixture(scope="module")
def half():
    """A CLIP in OpenAI's half precision."""
    model = small_clip()
    open_clip.convert_weights_to_lp(model)
    return model


@pytest.fixture
def archive(half, tmp_path, monkeypatch):
    """An archive in OpenAI's form, whose SHA-256 counts as a published one."""
    save_as_openai(half, clip_config(), tmp_path / "ViT-tiny.pt")
    sha256 = checksum(tmp_path / "ViT-tiny.pt")
    monkeypatch.setitem(weights.URLS, "ViT-B/16", f"https://localhost/{sha256}/ViT-tiny.pt")
    return tmp_path / "ViT-tiny.pt"


def test_archive_of_openai_gives_its_tensors_and_draws_no_random_numbers(half, archive):
    state = weights.read_state_dict(archive)
    before = torch.get_rng_state()
    assert {key: state[key].item() for key in SIZES} == SIZES
    model = clip.load_backbone(str(archive))
    for key, value in half.state_dict().items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
        assert torch.equal(model.state_dict()[key], value.float()), key
    assert torch.equal(torch.get_rng_state(), before)


def test_foreign_archive_is_refused_and_its_code_does_not_run(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    refused(archive, "TorchScript", "convert it")
    (tmp_path / "written").write_bytes(b"precious content")
    torch.jit.script(Hostile(str(tmp_path / "written"))).save(tmp_path / "vit.pt")
    refused(tmp_path / "vit.pt", "TorchScript", "convert it")
    assert (tmp_path / "written").read_bytes() == b"precious content"


def flip(path, part):
    content = bytearray(path.read_bytes())
    content[content.index(part)] ^= 1
    path.write_bytes(content)


def mark_as_folder(path):
    """torch returned memory that nobody had written."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"data/0") - len("vit/") - 46  # of the list of members
    assert content[entry : entry + 4] == b"PK\1\2"
    content[entry + 38] |= 0x10
    path.write_bytes(content)


DAMAGES = {
    "tensor that counts as a folder": mark_as_folder,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "bit of a tensor": lambda path: flip(path, torch.arange(4.0).numpy().tobytes()),
    "bit of the pickle": lambda path: flip(path, b"FloatStorage"),
    "larger than the file": lambda path: torch.save({"a": torch.ones(1).expand(2**40)}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_refused_in_one_line(damage, tmp_path):
    torch.save({"a": torch.arange(4.0)}, tmp_path / "vit.pt")
    DAMAGES[damage](tmp_path / "vit.pt")
    refused(tmp_path / "vit.pt", "is damaged", read=weights.read_state_dict)


def test_a_line_break_in_a_damaged_header_is_not_shown(tmp_path):
    header = b'{"a": {"dtype": "F\\n32", "shape": [1], "data_offsets": [0, 4]}}'
    file = tmp_path / "vit.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(file, "is damaged", "unknown variant", read=weights.read_state_dict)


def test_a_backbone_is_kept_if_asked_for_until_its_file_changes(half, tmp_path, monkeypatch):
    file = tmp_path / "vit.pt"
    state = half.state_dict()
    torch.save(state, file)
    monkeypatch.setattr(building, "build_cached", None)
    clip.keep_backbones(1)
    first = clip.load_backbone(str(file))
    expected = features(first)
    first.visual.proj.data.zero_()  # a run may change its model
    with monkeypatch.context() as patch:
        patch.setattr(building, "read_state_dict", None)
        for _ in range(2):
            second = clip.load_backbone(str(file))
            assert not second.training
            assert not any(weight.requires_grad for weight in second.parameters())
            assert torch.equal(features(second), expected)
            second.visual.proj.data.zero_()
    # Built, as the precision is another
    assert clip.load_backbone(str(file), "fp16").dtype == torch.float16
    assert building.build_cached.cache_info().currsize == 1
    state["visual.proj"] = state["visual.proj"] + 1
    torch.save(state, file)
    assert torch.equal(clip.load_backbone(str(file), "fp16").visual.proj, state["visual.proj"])


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: socket.socket(socket.AF_UNIX).bind(path.name),
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
    ],
    ids=["pipe", "socket", "folder", "device"],
)
def test_special_files_are_refused_without_waiting(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "vit.pt")
    for read in (clip.load_backbone, clip.weights_sha256, weights.read_state_dict):
        refused(tmp_path / "vit.pt", read=read)
    with pytest.raises(clip.ClipError, match=r"vit\.pt"):
        clip.load_backbone(f"ViT-B-16:{tmp_path}/vit.pt")


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("ln_final.weight", lambda value: torch.ones(20_480), "has the shape"),  # a tower of 19 GB
        ("visual.proj", lambda value: value * float("nan"), "visual.proj is not finite"),
        ("visual.proj", lambda value: value.long(), "int64"),
        ("text_projection", lambda value: value[0], "open_clip can build"),
        ("more", lambda value: torch.ones(1), "more tensors than this model, such as more"),
    ],
    ids=["width", "nan", "int", "dimensions", "more"],
)
def test_invalid_tensors_are_refused(key, change, words, half, tmp_path):
    state = half.state_dict()
    state |= {key: change(state.get(key)).clone()}
    torch.save(state, tmp_path / "vit.pt")
    refused(tmp_path / "vit.pt", words)


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("text_cfg", {"layers": 1}, "more tensors than"),
        ("vision_cfg", {"image_size": 10**9}, "'image_size': 1000000000, which"),
        ("vision_cfg", {"timm_model_name": "hf-hub:owner/model"}, "'timm_model_name': 'hf-hub"),
        ("preprocess_cfg", {"std": [0, 1, 1]}, "std"),
        ("model_cfg", [], "'model_cfg': "),
    ],
)
def test_configuration_beside_the_file_is_checked(part, settings, words, half, tmp_path):
    save_file(half.state_dict(), tmp_path / "vit.safetensors")
    config = {"model_cfg": clip_config(), "preprocess_cfg": {}}
    holder = config if part in config else config["model_cfg"]
    holder[part] = holder[part] | settings if isinstance(settings, dict) else settings
    to_json(tmp_path / "open_clip_config.json", config)
    with one_line(words, error=clip.ClipError) as caught:
        clip.load_backbone(str(tmp_path / "vit.safetensors"))
    assert str(caught.value).isprintable()
