"""Checkpoints in the shapes, names and folders of the published projects: `tools/reproduce.py`
tests them.

The shapes are functions of the published numbers and depths of prompts and of the widths of the
backbone. They do not come from our YAML files or our modules.
"""

from dataclasses import dataclass, field

import pytest
import torch
from drawn import results
from marks import thorough_but
from published_files import published_model, published_training, save_published
from test_lora_files import lora_shapes, write_lora

from trainers.base.learned import Checkpoints

pytestmark = pytest.mark.slow

# widths; classes of the training run
TEXT = 64
VISION = 128
JOINT = 256
CLASSES = 3
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def deep(tower: str, n: int, depth: int, width: int) -> Shapes:
    """Prompts of the layers after the first."""
    return {
        f"{tower}.transformer.resblocks.{layer}.VPT_shallow": (n, width)
        for layer in range(1, depth)
    }


def vision(n: int, depth: int) -> Shapes:
    return {"image_encoder.VPT": (n, VISION)} | deep("image_encoder", n, depth, VISION)


def texts(n: int, depth: int) -> Shapes:
    return {"prompt_learner.ctx": (n, TEXT)} | deep("text_encoder", n, depth, TEXT)


def coupled(n: int, depth: int, *projections: str) -> Shapes:
    """Those of MaPLe and MPL, whose later layers have these projections."""
    shapes = {"prompt_learner.ctx": (n, TEXT)} | linear("prompt_learner.proj", TEXT, VISION)
    for layer in range(depth - 1):
        shapes[f"prompt_learner.compound_prompts_text.{layer}"] = (n, TEXT)
        for name in projections:
            shapes |= linear(f"prompt_learner.{name}.{layer}", TEXT, VISION)
    return shapes


def maple(n: int, depth: int) -> Shapes:
    return coupled(n, depth, "compound_prompt_projections")


def network(hidden: int, outputs: int) -> Shapes:
    """The network of CoCoOp and TCP."""
    return linear("meta_net.linear1", JOINT, hidden) | linear("meta_net.linear2", hidden, outputs)


def mmrl(n: int, width: int, layers: int) -> Shapes:
    shapes = {
        "representation_learner.compound_rep_tokens": (n, width),
        "image_encoder.proj_rep": (VISION, JOINT),
    }
    for layer in range(layers):
        shapes |= linear(
            f"representation_learner.compound_rep_tokens_r2vproj.{layer}", width, VISION
        )
        shapes |= linear(f"representation_learner.compound_rep_tokens_r2tproj.{layer}", width, TEXT)
    return shapes


def mmrlpp(n: int, width: int, layers: int, rank: int, rank_of_projection: int) -> Shapes:
    shapes: Shapes = {"representation_learner.compound_rep_tokens": (n, width)}
    for tower, outputs in (("v", VISION), ("t", TEXT)):
        name = f"representation_learner.srra_r2{tower}proj"
        shapes[f"{name}.weight"] = (outputs, width)
        for layer in range(layers):
            shapes |= {
                f"{name}.srra.{layer}.A": (outputs, rank),
                f"{name}.srra.{layer}.B": (rank, width),
            }
            shapes[f"{name}.srra.{layer}.bias"] = (outputs,)
    return shapes | {
        "image_encoder.A": (VISION, rank_of_projection),
        "image_encoder.B": (rank_of_projection, JOINT),
    }


def coprompt(n: int, depth: int) -> Shapes:
    """MaPLe's prompts, and two adapters."""
    adapter = {"fc.0.weight": (JOINT // 4, JOINT), "fc.2.weight": (JOINT, JOINT // 4)}
    adapters = {
        f"adapter_{part}.{name}": shape
        for part in ("image", "text")
        for name, shape in adapter.items()
    }
    return maple(n, depth) | adapters


def mma(start: int, end: int, dim: int) -> Shapes:
    shapes: Shapes = {}
    for block in range(start, end + 1):
        for tower, width in (("text", TEXT), ("visual", VISION)):
            shapes |= linear(f"{tower}_adapter.{block}.down.0", width, dim)
            shapes |= linear(f"{tower}_adapter.{block}.up", dim, width)
        shapes |= linear(f"shared_adapter.{block}.0", dim, dim)
    return shapes


def clipfit(layers: int) -> Shapes:
    """Layer norms of the image tower, and biases of the text tower."""
    norms = [
        "ln_pre",
        "ln_post",
        *(f"transformer.resblocks.{layer}.ln_{n}" for layer in range(layers) for n in (1, 2)),
    ]
    shapes: Shapes = {
        f"image_encoder.{norm}.{part}": (VISION,) for norm in norms for part in ("weight", "bias")
    }
    text = "text_encoder.transformer.resblocks"
    return shapes | {f"{text}.{layer}.mlp.c_proj.bias": (TEXT,) for layer in range(layers)}


def clipsvd(layers: int) -> Shapes:
    """Singular values of the six maps of each block."""
    maps = (
        *(f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "proj")),
        "mlp.c_fc",
        "mlp.c_proj",
    )
    places = [(name, layer) for layer in range(layers) for name in maps]
    shapes: Shapes = {
        f"transformer.resblocks.{layer}.{name}.vector_S": (1, TEXT) for name, layer in places
    }
    return shapes | {f"visual.{name}": (1, VISION) for name in shapes}


def dept(prompts: Shapes) -> Shapes:
    """DePT's head and scales next to the prompts of its base, whose names have a prefix."""
    films = {
        f"film_lp_{kind}.{name}": (JOINT,) for kind in ("img", "text") for name in ("scale", "bias")
    }
    return prompts | films | linear("linear_probe_proj", JOINT, CLASSES)


@dataclass(frozen=True)
class Published:
    """A published checkpoint of EuroSAT or ImageNet; `unused` is what it holds besides what the
    method has learned.
    """

    method: str
    place: str  # its folder in the set, of seed 1
    saved_as: str  # the folder of its method in there
    epoch: int
    learned: Shapes
    unused: Shapes = field(default_factory=dict)
    options: tuple = ()  # of `tools/reproduce.py`


PROMPTS = "prompt_learner"
BOTH = "VLPromptLearner"
COUPLED = "MultiModalPromptLearner"
REPRESENTATIONS = "MultiModalRepresentationLearner"
MPL = coupled(1, 9, "txt2img_proj.0", "txt2img_proj.1")
LORA = lora_shapes([TEXT] * 12 + [VISION] * 12, 2)
KGCOOP_UNUSED = {"bias_vectors": (1, 512), **linear("meta_net.linear1", 512, 512)}


def base(method: str, saved_as: str, epoch: int, learned: Shapes, *options) -> Published:
    """From base to new classes, in a folder for each dataset."""
    return Published(method, "eurosat/base/seed1", saved_as, epoch, learned, options=options)


def output(
    method: str, cfg: str, saved_as: str, epoch: int, learned: Shapes, *options, shots="16", **more
) -> Published:
    """From base to new classes, in the output folder of a project."""
    place = f"base2new/train_base/eurosat/shots_{shots}/{method}/{cfg}/seed1"
    return Published(method, place, saved_as, epoch, learned, options=options, **more)


def imagenet(
    method: str, place: str, saved_as: str, epoch: int, learned: Shapes, *options
) -> Published:
    """Trained on ImageNet, for tests on other datasets."""
    return Published(
        method, place, saved_as, epoch, learned, options=("--protocol", "cross_dataset", *options)
    )


def probed(
    method: str, cfg: str, saved_as: str, learned: Shapes, unused: Shapes | None = None
) -> Published:
    """DePT over a method."""
    place = f"train_base/ExtrasLinearProbe{method}/eurosat/shots16/{cfg}/seed1"
    return Published(f"DePT+{method}", place, saved_as, 10, dept(learned), unused or {})


BASE2NEW = "base2new/train_base/eurosat/shots_16"
TOWERS_20 = "vit_b16_c2_ep20_batch4_4+4ctx"
LANGUAGE = "vit_b16_c2_ep5_batch4_4ctx_language_only"
MPL_CFG = "vit_b4_c1_add2_rm1"
COOP_IMAGENET = "imagenet/CoOp/vit_b16_ep50_16shots/nctx16_cscFalse_ctpend/seed1"
MMRL_IMAGENET = "base2new/train_base/imagenet/shots_16/MMRL/vit_b16_cross_datasets/seed1"
MMRLPP_IMAGENET = MMRL_IMAGENET.replace("MMRL", "MMRLpp")
MPL_IMAGENET = f"crossdataset/imagenet/MPL/{MPL_CFG}_16shots/seed1"
DEPT_IMAGENET = "ExtrasLinearProbeCoOp/imagenet/shots16/vit_b16_ep10_bs4_lr35/seed1"
# As they are in CLIP
TOWERS = {
    "image_encoder.proj": (VISION, JOINT),
    "text_encoder.ln_final.bias": (TEXT,),
}
CONTEXT_4 = {"ctx": (4, TEXT)}
CONTEXT_16 = {"ctx": (16, TEXT)}
CASES = {
    "CoOp": output("CoOp", "vit_b16_ep50_ctxv1", PROMPTS, 50, CONTEXT_4),
    "CoOp, ImageNet": imagenet(
        "CoOp", COOP_IMAGENET, PROMPTS, 50, CONTEXT_16, "--cfg", "vit_b16_ep50"
    ),
    "CoCoOp": output(
        "CoCoOp",
        "vit_b16_c4_ep10_batch1_ctxv1",
        PROMPTS,
        10,
        CONTEXT_4 | network(JOINT // 16, TEXT),
    ),
    "KgCoOp": output(
        "KgCoOp",
        "vit_b16_ep100_ctxv1",
        PROMPTS,
        100,
        CONTEXT_4,
        shots="16_8.0",
        unused=KGCOOP_UNUSED,
    ),
    "ProGrad": output(
        "ProGrad",
        "rn50_ep100",
        PROMPTS,
        100,
        CONTEXT_16,
        "--shots",
        4,
        "--cfg",
        "rn50_ep100",
        shots="4",
    ),
    "TCP": output(
        "TCP",
        "vit_b16_ep100_ctxv1",
        PROMPTS,
        50,
        CONTEXT_4 | network(JOINT // 4, 4 * TEXT),
        shots="16_1.0",
    ),
    "VPT": base("VPT", PROMPTS, 5, vision(8, 12)),
    "IVLP": base("IVLP", BOTH, 5, texts(2, 12) | vision(2, 12)),
    "IVLP, language only": base("IVLP", BOTH, 5, texts(4, 12), "--cfg", LANGUAGE),
    "IVLP, 20 epochs": base("IVLP", BOTH, 20, texts(4, 9) | vision(4, 9), "--cfg", TOWERS_20),
    "MaPLe": base("MaPLe", COUPLED, 5, maple(2, 9)),
    "MaPLe, ImageNet": imagenet("MaPLe", "imagenet/seed1", COUPLED, 2, maple(2, 3)),
    "PromptSRC": base("PromptSRC", BOTH, 20, texts(4, 9) | vision(4, 9)),
    "PromptSRC, ImageNet": imagenet(
        "PromptSRC", "imagenet/seed1", BOTH, 20, texts(4, 3) | vision(4, 3)
    ),
    "PromptSRC, few shots": Published(
        "PromptSRC",
        "eurosat/16shot/seed1",
        BOTH,
        50,
        texts(4, 9) | vision(4, 9),
        options=("--protocol", "few_shot"),
    ),
    "MMRL": output("MMRL", "vit_b16", REPRESENTATIONS, 10, mmrl(5, 2048, 7)),
    "MMRL, ImageNet": imagenet("MMRL", MMRL_IMAGENET, REPRESENTATIONS, 1, mmrl(5, 512, 7)),
    "MMRLpp": output("MMRLpp", "vit_b16", REPRESENTATIONS, 10, mmrlpp(5, 512, 7, 4, 64)),
    "MMRLpp, ImageNet": imagenet(
        "MMRLpp", MMRLPP_IMAGENET, REPRESENTATIONS, 1, mmrlpp(5, 512, 7, 4, 64)
    ),
    "CoPrompt": Published(
        "CoPrompt",
        "train_base/eurosat/shots_16/CoPrompt/coprompt/seed1",
        COUPLED,
        8,
        coprompt(2, 12),
    ),
    "MPL": output("MPL", MPL_CFG, COUPLED, 5, MPL),
    "MMA": Published(
        "MMA", f"{BASE2NEW}/MultiModalAdapter/seed1", "adapter_learner", 5, mma(5, 12, 32)
    ),
    "CLIPFit": Published("CLIPFit", "eurosat/base/seed1", PROMPTS, 100, clipfit(12), TOWERS),
    "CLIPSVD": Published(
        "CLIPSVD",
        "eurosat/vitb16/16shots/seed1",
        "",
        50,
        clipsvd(12),
        options=("--protocol", "few_shot"),
    ),
    "DePT+CoOp": probed(
        "CoOp", "vit_b16_ep10_bs4_lr35", "PromptLearner", {"prompt_learner.ctx": (16, TEXT)}
    ),
    "DePT+CoOp, ImageNet": imagenet(
        "DePT+CoOp", DEPT_IMAGENET, "PromptLearner", 10, dept({"prompt_learner.ctx": (16, TEXT)})
    ),
    "DePT+KgCoOp": probed(
        "KgCoOp",
        "vit_b16_ep10_ctxv1_bs4_lr35",
        "PromptLearner",
        {"prompt_learner.ctx": (4, TEXT)},
        {f"prompt_learner.{name}": shape for name, shape in KGCOOP_UNUSED.items()}
        | linear("adapter.fc", 8, 8),
    ),
    "DePT+CoCoOp": probed(
        "CoCoOp",
        "vit_b16_c4_ep10_batch1_ctxv1",
        "PromptLearner",
        {"prompt_learner.ctx": (4, TEXT)}
        | {f"prompt_learner.{name}": shape for name, shape in network(JOINT // 16, TEXT).items()},
    ),
    "DePT+MaPLe": probed("MaPLe", "vit_b16_c2_ep10_batch4_2ctx", COUPLED, maple(2, 9)),
    "LoCoOp, ImageNet": imagenet(
        "LoCoOp",
        "imagenet/LoCoOp/vit_b16_ep50_16shots/nctx16_cscFalse_ctpend/seed1",
        PROMPTS,
        50,
        CONTEXT_16,
    ),
    "CLIPLoRA": Published(
        "CLIPLoRA", "vitb16/eurosat/16shots/seed1", "", 50, LORA, options=("--protocol", "few_shot")
    ),
    "MPL, ImageNet": imagenet("MPL", MPL_IMAGENET, COUPLED, 2, MPL, "--cfg", MPL_CFG),
}


@pytest.fixture(scope="module")
def backbone(backbones):
    """As deep as ViT-B/16, with towers of different widths."""
    return backbones(32, 16, 12, 12, VISION, TEXT, JOINT)


def random_tensors(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """In half precision, as the published code trains."""
    generator = torch.manual_seed(seed)
    return {
        key: 0.1 * torch.randn(shape, generator=generator).half() for key, shape in shapes.items()
    }


def publish(case: Published, folder, backbone) -> dict[str, torch.Tensor]:
    """Write a checkpoint as its project does; returns what the method has learned."""
    learned = random_tensors(case.learned, seed=1)
    if case.method == "CLIPLoRA":
        write_lora(folder / case.place, learned)
        return learned
    if case.method == "CLIPSVD":
        (folder / case.place).mkdir(parents=True)
        frozen = {f"{name[:-8]}fc_U.bias": value[0] for name, value in learned.items()}
        torch.save(
            {"weights": learned | frozen, "metadata": {}}, folder / case.place / "base_model.pt"
        )
        return learned
    whole = case.saved_as not in ("prompt_learner", "adapter_learner") or case.method == "VPT"
    state = learned | random_tensors(case.unused, seed=2)
    if whole:
        state = published_model(state, backbone, CLASSES, prefix="")
    elif "ctx" in state:
        state |= random_tensors(
            {"token_prefix": (CLASSES, 1, TEXT), "token_suffix": (CLASSES, 60, TEXT)}, seed=3
        )
    if case.method == "PromptSRC":  # its teacher
        image = {
            key: value
            for key, value in state.items()
            if key.startswith("image_encoder") and key not in learned
        }
        state |= {f"prompt_learner.ZS_{key}": value for key, value in image.items()}
    if case.method == "CoPrompt":  # its teacher, a plain CLIP
        state |= {
            f"model_distill.{key}": value.half() for key, value in torch.load(backbone).items()
        }
    parameters = [torch.nn.Parameter(value.float()) for value in learned.values()]
    training = published_training(parameters, case.epoch)
    save_published(folder / case.place, state, saved_as=case.saved_as, **training)
    return learned


@pytest.fixture
def tested(reproduced, monkeypatch, backbone, tmp_path):
    """`tested(case)` -> how `tools/reproduce.py` ended, what its tests have loaded, and their
    results.
    """
    loaded = []
    load = Checkpoints.load

    def noted(checkpoints, checkpoint, path):
        load(checkpoints, checkpoint, path)
        method = checkpoints.method
        tensors = method.saved_module().state_dict().items()
        state = {key: value.cpu().clone() for key, value in tensors}
        loaded.append((state, method.model.classes_learned))

    monkeypatch.setattr(Checkpoints, "load", noted)

    def tested(case):
        ended = reproduced(case.method, backbone, *case.options)
        return (
            ended,
            loaded,
            [results(file.parent) for file in (tmp_path / "out").rglob("results.json")],
        )

    return tested


FIRST = {case.method: name for name, case in reversed(CASES.items())}


@pytest.mark.parametrize("name", thorough_but((*FIRST.values(), "DePT+CoOp, ImageNet"), CASES))
def test_published_checkpoint_is_tested_with_our_settings(name, tested, backbone, tmp_path):
    case = CASES[name]
    learned = publish(case, tmp_path / "set", backbone)
    ended, loaded, results = tested(case)
    assert ended.status == 0, ended.errors
    assert f"seed 1: {tmp_path / 'set' / case.place}\n" in ended.printed
    tests = 1 if "--protocol" in case.options else 2  # base and new classes
    assert [result["epochs"] for result in results] == [case.epoch] * tests
    assert len(loaded) == tests
    for state, learned_classes in loaded:
        assert state.keys() == learned.keys()
        assert {value.dtype for value in state.values()} == {torch.float32}
        different = {key for key in state if not torch.equal(state[key], learned[key].float())}
        # Of the learned classes alone
        head = {key for key in state if key.startswith("linear_probe_proj")}
        assert different == (set() if learned_classes else head)


@pytest.mark.parametrize(
    ("name", "learned_classes"), [("MMRL", [True, False]), ("MMRLpp, ImageNet", [False])]
)
def test_mmrl_reads_images_of_learned_classes_in_another_way(
    name, learned_classes, tested, backbone, tmp_path
):
    """Its checkpoints do not say what they have learned: base classes of the dataset, or
    ImageNet.
    """
    publish(CASES[name], tmp_path / "set", backbone)
    _, loaded, _ = tested(CASES[name])
    assert [learned for _, learned in loaded] == learned_classes
