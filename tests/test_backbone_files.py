"""Backbones are read exactly, in little memory; special files and invalid tensors are refused in one line."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path

import open_clip
import pytest
import torch
from drawn import clip_config, differing, features, small_clip
from safetensors.torch import save_file
from torch import nn
from weight_files import SECONDS, SIZES, refused, save_as_openai

import clip
from clip import building, torch_files, weights
from clip.random_weights import random_clip
from common.files import checksum
from common.start import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")


# ---------------------------------------------------------------- sound files


@pytest.fixture(scope="module")
def half():
    """A CLIP in OpenAI's half precision."""
    model = small_clip()
    open_clip.convert_weights_to_lp(model)
    return model


def test_archive_in_openais_form_gives_its_tensors_and_draws_no_random_numbers(half, tmp_path):
    save_as_openai(half, clip_config(), tmp_path / "ViT-tiny.pt")
    state, before = weights.read_state_dict(tmp_path / "ViT-tiny.pt"), torch.get_rng_state()
    assert {key: state[key].item() for key in SIZES} == SIZES
    model = clip.load_backbone(str(tmp_path / "ViT-tiny.pt"))
    for key, value in half.state_dict().items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
        assert torch.equal(model.state_dict()[key], value.float()), key
    assert torch.equal(torch.get_rng_state(), before)


def test_scripted_archive_gives_its_tensors(half, tmp_path):
    torch.jit.script(half).save(tmp_path / "vit.pt")
    assert differing(clip.load_backbone(str(tmp_path / "vit.pt"), "fp16").state_dict(), half.state_dict()) == []


@pytest.mark.slow
@pytest.mark.thorough
def test_loading_a_full_size_archive_takes_little_more_memory_than_the_model(tmp_path):
    config = open_clip.get_model_config("ViT-B-16") | {"quick_gelu": True}
    model = random_clip("ViT-B-16")
    open_clip.convert_weights_to_lp(model)
    save_as_openai(model, config, tmp_path / "ViT-B-16.pt")
    code = "import resource, clip; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "clip.load_backbone('ViT-B-16.pt')\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * 1024 < 1.35 * 598.5e6  # with the half tensors that are not converted yet


def test_state_dicts_are_read_as_torch_load_reads_them(tmp_path):
    base = torch.randn(6, 8, generator=torch.manual_seed(0)).abs() * 2
    state = {"whole": base, "again": base, "transposed": base.T, "part": base[2:4, ::3]}
    state |= {"parameter": nn.Parameter(torch.ones(3)), "scalar": torch.tensor(4.6), "empty": torch.zeros(0)}
    state |= {str(dtype): base.to(dtype) for dtype in torch_files.TYPES}
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 2])
    rest = {"optimizer": optimizer.state_dict(), "lr": schedule.state_dict(), "shape": base.shape, "big": 2**70}
    assert isinstance(rest["lr"]["milestones"], Counter)
    whole = {"state_dict": state, "epoch": 3, "done": True, "name": None} | rest
    for content in (state, whole, nn.BatchNorm2d(4).state_dict()):
        torch.save(content, tmp_path / "vit.pt")
        expected = torch.load(tmp_path / "vit.pt", weights_only=True)
        expected = expected.get("state_dict", expected)
        read = weights.read_state_dict(tmp_path / "vit.pt")
        assert list(read) == list(expected)
        for key, value in expected.items():
            assert read[key].dtype == value.dtype and torch.equal(read[key], value), key


def test_a_backbone_is_kept_if_asked_for_until_its_file_changes(half, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "KEPT", OrderedDict())
    file, state = tmp_path / "vit.pt", half.state_dict()
    torch.save(state, file)
    monkeypatch.setattr(building, "kept_backbones", 0)
    clip.load_backbone(str(file))
    assert not building.KEPT
    clip.keep_backbones(1)
    first = clip.load_backbone(str(file))
    expected = features(first)
    first.visual.proj.data.zero_()  # a run may change its model
    first.visual.register_forward_hook(lambda *_: pytest.fail("of another copy"))
    with monkeypatch.context() as patch:
        patch.setattr(building, "read_state_dict", None)
        for _ in range(2):
            second = clip.load_backbone(str(file))
            assert not second.training and not any(weight.requires_grad for weight in second.parameters())
            assert torch.equal(features(second), expected)
            second.visual.proj.data.zero_()
    assert clip.load_backbone(str(file), "fp16").dtype == torch.float16  # built, as the precision is another
    assert len(building.KEPT) == 1
    state["visual.proj"] = state["visual.proj"] + 1
    torch.save(state, file)
    assert torch.equal(clip.load_backbone(str(file), "fp16").visual.proj, state["visual.proj"])
    clip.keep_backbones(0)
    assert not building.KEPT


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("pair", [False, True], ids=["file", "pair"])
@pytest.mark.parametrize("name", ["vit.pt", "vit.safetensors"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(path.name), "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 36)), "is damaged"),
    ],
    ids=["pipe", "socket", "folder", "device", "loop", "sparse"],
)
def test_special_files_are_refused_without_waiting(make, words, name, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    with pytest.raises(clip.ClipError, match=words) as caught:
        clip.load_backbone(f"ViT-B-16:{tmp_path / name}" if pair else str(tmp_path / name))
    assert name in str(caught.value) and str(caught.value).isprintable()
    if "regular" in words and not pair:
        for read in (clip.weights_sha256, weights.read_state_dict, lambda path: building.build(path, "fp32", "vit")):
            with pytest.raises(clip.ClipError, match=words):
                read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x" * 5000 + ".pt", "a\0b.pt", "~nosuchuser/vit.pt", "vit.pt/", "\udcff.pt"])
def test_invalid_paths_are_refused_in_one_line(name):
    for read in (clip.load_backbone, weights.read_state_dict):
        with pytest.raises(clip.ClipError, match="does not exist|cannot be read"):
            read(name)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("ln_final.weight", lambda value: torch.ones(20_480), "size mismatch"),  # a tower of 19 GB
        ("positional_embedding", lambda value: torch.zeros(100_000, 64), "context of 100000"),  # a large mask
        ("visual.proj", lambda value: value * float("nan"), "visual.proj is not finite"),
        ("logit_scale", lambda value: value / 0, "logit_scale is not finite"),
        ("visual.proj", lambda value: value.long(), "int64"),
        ("visual.proj", lambda value: value[:0], "size mismatch"),
        ("visual.conv1.weight", lambda value: value[0, 0, 0, 0], "open_clip can build"),
        ("visual.conv1.weight", lambda value: value[:, :, :0, :0], "open_clip can build"),
        ("text_projection", lambda value: value[0], "open_clip can build"),
        (None, None, "too few for 3002 layers"),
    ],
    ids=["width", "context", "nan", "inf", "int", "empty", "scalar", "patch", "dimensions", "layers"],
)
@pytest.mark.parametrize("name", ["vit.pt", "vit.safetensors"])
def test_invalid_tensors_are_refused_before_a_model_is_built(key, change, words, name, half, tmp_path):
    state = half.state_dict()
    layers = {f"transformer.resblocks.{layer}.x": torch.ones(1) for layer in range(3_000)}
    state |= {key: change(state[key]).clone()} if key else layers
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    refused(tmp_path / name, words)


def test_position_embeddings_of_integers_are_refused_where_their_lengths_may_differ(half, tmp_path):
    state = half.state_dict()
    torch.save(state | {"positional_embedding": state["positional_embedding"].long()}, tmp_path / "vit.pt")
    with pytest.raises(clip.ClipError, match="positional_embedding has the type torch.int64"):
        building.build(tmp_path / "vit.pt", "fp32", "vit", {"model_cfg": clip_config()}, resize=True)


def test_checksum_of_a_pair_is_of_the_file_in_the_given_folder(tmp_path, monkeypatch):
    def download(pretrained, cache_dir):
        (file := tmp_path / cache_dir / "vit.pt").write_bytes(b"weights")
        return str(file)

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    (tmp_path / "mine").mkdir()
    expected = checksum(Path(download(None, "mine")))
    assert clip.weights_sha256("ViT-B-16:laion400m_e32", cache="mine") == expected


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("text_cfg", {"layers": 10**9}, "too few for"),
        ("vision_cfg", {"layers": 10**9}, "too few for"),
        ("vision_cfg", {"layers": [10**9, 1, 1, 1]}, "too few for"),
        ("text_cfg", {"context_length": 10**6}, "context"),
        ("text_cfg", {"layers": "2"}, "open_clip can build"),
        ("vision_cfg", {"image_size": 10**9}, "open_clip can build"),
        ("text_cfg", {"hf_model_name": "hub/model"}, "hub"),
        ("vision_cfg", {"timm_model_name": "hf-hub:owner/model"}, "hub"),
        ("vision_cfg", {"timm_model_name": "eva02_enormous_patch14_clip_224"}, "open_clip can build"),
        ("preprocess_cfg", {"std": [0, 1, 1]}, "std"),
        ("preprocess_cfg", {"mean": "abc"}, "open_clip can build"),
        ("preprocess_cfg", {"mean": [1, 2]}, "mean"),
        ("preprocess_cfg", [], "must be objects"),
        ("text_cfg", None, "must be objects"),
        ("model_cfg", [], "not a valid open_clip configuration"),
    ],
)
def test_configuration_beside_the_file_is_checked(part, settings, words, half, tmp_path):
    save_file(half.state_dict(), tmp_path / "vit.safetensors")
    config = {"model_cfg": clip_config(), "preprocess_cfg": {}}
    holder = config if part.endswith("ess_cfg") or part == "model_cfg" else config["model_cfg"]
    holder[part] = holder[part] | settings if isinstance(settings, dict) else settings
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(clip.ClipError, match=words) as caught:
        clip.load_backbone(str(tmp_path / "vit.safetensors"))
    assert time.monotonic() - start < SECONDS and str(caught.value).isprintable()
