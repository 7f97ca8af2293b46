"""Try every architecture of open_clip with published weights; write docs/figures/backbones.csv and
docs/backbones.md.

    python docs/backbones.py                      # all, which takes half an hour on two cores
    python docs/backbones.py --narrow             # all with small widths, in two minutes
    python docs/backbones.py ViT-B-32 RN50        # print the rows of some

Weights are random and from open_clip itself. Each architecture has a process of its own.
"""

import argparse
import csv
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import open_clip  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from tiny_models import (  # noqa: E402
    Letters,
    not_initialised,
    open_clips,
    rows_of,
    small_timm,
    tiny_config,
    with_sizes,
)

import clip  # noqa: E402
import trainers  # noqa: E402
from clip.anatomy import hugging_face  # noqa: E402
from clip.building import CLIP, of_clip, unpacked  # noqa: E402
from common.errors import UsageError, one_line  # noqa: E402
from common.files import write_text  # noqa: E402
from inference.description import configuration  # noqa: E402
from trainers.base.method import Classes  # noqa: E402

PAGE = ROOT / "docs/backbones.md"
FIGURES = ROOT / "docs/figures/backbones.csv"
MARK = "<!-- written by docs/backbones.py -->\n"
NAMES = ["river", "green field", "old tree"]
METHODS = {"CoOp": {"N_CTX": 4}, "MPL": {"PROMPT_DEPTH": 2}, "CLIPLoRA": {}}
VITS = ("VisionTransformer", "Eva")
TOKENS = 100_000  # a larger vocabulary is replaced by one of a thousand tokens


SECTION = """## All architectures

`make backbones` writes this section and [figures/backbones.csv](figures/backbones.csv), which has a row for each
architecture. open_clip {version} has {all} architectures with published weights. With random weights, image and text
features of {same} of them equal those of its own `encode_image` and `encode_text` (relative difference at most 1e-5).
{vits} image towers take vision prompts. A training step of CoOp works with {CoOp} architectures, of MPL with {MPL}, of
CLIPLoRA with {CLIPLoRA}. {built}
| image tower | text tower | architectures | such as | weights | {methods} |
|{rules}
"""
WIDE = """Models of more than {largest} million weights were built with two layers in each tower and a small
vocabulary. For these and for the tokenisers of the Hub, a tokeniser that counts letters read the texts.
"""
NARROW = """Each model was built with two layers and small widths (`python docs/backbones.py --narrow`). So the
seconds and the memory in the file are not those of the published model. A tokeniser that counts letters read the texts.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "architectures (default: all with published weights)"
    add("names", nargs="*", metavar="ARCH", help=text)
    text = "million weights up to which all layers are built"
    add("--largest", type=int, default=160, help=text)
    add("--narrow", action="store_true", help="build each with small widths and two layers")
    add("--rows", type=Path, help="file with the rows of an earlier start, which are kept")
    return parser.parse_args()


def text_model(name: str, layers: int | None, folder: str) -> None:
    """Write the `config.json` of a text tower of the library transformers, as the Hub has it, to a
    folder.
    """
    import transformers

    large = "large" in name or "1.3B" in name
    if "nllb" in name:
        sizes = {
            "vocab_size": 256_206,
            "d_model": 1024,
            "encoder_layers": 24 if large else 12,
            "decoder_layers": 1,
        }
        sizes |= {"encoder_ffn_dim": 8192 if large else 4096, "scale_embedding": True}
        config = transformers.M2M100Config(**sizes)
    else:
        kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
        sizes = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        multilingual = {"vocab_size": 250_002} if "xlm" in name else {"vocab_size": 50_265}
        config = kind(
            **(sizes if large else {}),
            **multilingual,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
    if layers:
        config.vocab_size = min(config.vocab_size, 1000)
        setattr(config, "encoder_layers" if "nllb" in name else "num_hidden_layers", layers)
    config.save_pretrained(folder)


def smaller(config: dict, layers: int | None, folder: str) -> dict:
    """A configuration with at most so many layers (None: all) and a vocabulary of at most
    `TOKENS`.
    """
    config = json.loads(json.dumps(config))
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    if layers or text.get("vocab_size", 0) > TOKENS:
        text["vocab_size"] = 1000
    if text.get("hf_model_name"):
        text_model(text["hf_model_name"], layers, folder)
        text |= {"hf_model_name": folder, "hf_model_pretrained": False}
        config["custom_text"] = True
    if layers and isinstance(vision.get("layers", 1), int):
        vision["layers"] = min(layers, vision.get("layers", 12))
    if layers:
        text["layers"] = min(layers, text.get("layers", 12))
    if "multimodal_cfg" in config:
        config["multimodal_cfg"]["layers"] = 1
    return config


def with_depth(layers: int | None) -> Any:
    """Within it, timm's models have at most so many layers, if they are vision transformers."""
    original = timm.create_model

    def create(name: str, **options: Any) -> Any:
        try:
            return original(name, **options, **({"depth": layers} if layers else {}))
        except TypeError:
            return original(name, **options)

    return mock.patch.object(open_clip.timm_model.timm, "create_model", create)


def weights_in(config: dict) -> int:
    """How many weights a model of a configuration has, without its decoder of texts."""
    config = json.loads(json.dumps(config))
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        if name := config["text_cfg"].get("hf_model_name"):
            text_model(name, None, folder)
            config["text_cfg"]["hf_model_name"] = folder
            config = with_sizes(config)
        return sum(parameter.numel() for parameter in CLIP(**of_clip(config)).parameters())


def depths(model: CLIP) -> str:
    text = "" if hugging_face(model) is not None else len(model.transformer.resblocks)
    return f"{len(clip.image_blocks(model)) if clip.takes_prompts(model) else 'all'} / {text or 2}"


def measure(arch: str, largest: int, narrow: bool = False) -> dict[str, Any]:
    """The row of an architecture."""
    config: Any = open_clip.get_model_config(arch)
    with tempfile.TemporaryDirectory() as folder:
        try:
            weights = weights_in(config)
            layers = None if weights <= largest * 1e6 and not narrow else 2
            timm_name = config["vision_cfg"].get("timm_model_name") or ""
            config = smaller(tiny_config(arch) if narrow else config, layers, folder)
            with small_timm(timm_name) if narrow else with_depth(layers) as side:
                if narrow and timm_name:
                    config["vision_cfg"]["image_size"] = side
                theirs = open_clips(config)
                with not_initialised():
                    ours: Any = CLIP(**of_clip(with_sizes(config))).eval()
        except (ImportError, RuntimeError) as error:
            if "transformers" not in str(error):
                raise
            return {"arch": arch, "missing": "requirements-hf.txt"}
    ours.load_state_dict(unpacked(theirs.state_dict(), ours), assign=True)
    ours.requires_grad_(False)
    if ours.vocab_size != clip.tokenize("").max() + 1:
        words = {"pool_type": "argmax", "eos_id": 2} | config["text_cfg"]
        ours.tokenizer = clip.tokenizer.OtherTokenizer(
            Letters(words), chr, ours.context_length, "letters"
        )
    size = ours.visual.image_size
    images = torch.randn(
        2, 3, *(size if isinstance(size, tuple) else (size, size)), generator=torch.manual_seed(0)
    )
    ids = rows_of(ours, *NAMES)
    with torch.no_grad():
        pairs = (
            (clip.encode_image(ours, images).feature, theirs.encode_image(images, normalize=False)),
            (
                clip.encode_text(ours, clip.TextPrompts(ids)),
                theirs.encode_text(ids, normalize=False),
            ),
        )
    row = {
        "arch": arch,
        "weights": weights,
        "layers": depths(ours),
        "tower": type(getattr(ours.visual, "trunk", ours.visual)).__name__,
    }
    row["differences"] = [((found - own).norm() / own.norm()).item() for found, own in pairs]
    del theirs, pairs
    row["methods"] = {
        name: step(name, settings, ours, images) for name, settings in METHODS.items()
    }
    row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row


def step(name: str, settings: dict, model: CLIP, images: torch.Tensor) -> float | str:
    """Seconds of a training step of a method, or the line that refuses the model."""
    kind = trainers.methods()[name]
    cfg = configuration(name)
    cfg.MODEL.BACKBONE.NAME = "the backbone"
    cfg.TRAINER[kind.section()].update(settings)
    method = kind(cfg, Classes(NAMES), torch.device("cpu"))
    torch.manual_seed(1)
    try:
        learner = method.build_prompts(model, NAMES)
        prompted = kind.Model(model, learner)
    except UsageError as error:
        return str(error)
    prompted.train()
    optimizer = torch.optim.SGD(prompted.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in prompted.parameters()]
    start = time.process_time()
    loss = torch.nn.functional.cross_entropy(prompted.output(images).logits, torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    seconds = time.process_time() - start
    changed = [
        not torch.equal(old, new) for old, new in zip(before, prompted.parameters(), strict=True)
    ]
    if not (
        loss.isfinite()
        and any(changed)
        and all(new.isfinite().all() for new in prompted.parameters())
    ):
        raise ValueError(f"a step of {name} learns nothing")
    return seconds


def attempt(arch: str, largest: int, narrow: bool) -> dict[str, Any]:
    try:
        return measure(arch, largest, narrow)
    except Exception as error:  # the loop continues with other architectures
        return {"arch": arch, "error": f"{type(error).__name__}: {one_line(error)}"}


def text_tower(arch: str) -> str:
    """Whose text tower an architecture has."""
    config: Any = open_clip.get_model_config(arch)
    return "Hugging Face" if config["text_cfg"].get("hf_model_name") else "open_clip"


def figures(rows: list[dict[str, Any]]) -> str:
    """The CSV file with a row for each architecture. Weights are those of the complete
    architecture, seconds processor time of a step with two images and three classes on one core,
    memory the peak of the process in bytes.
    """
    text = io.StringIO()
    heads = ["architecture", "weights", "image_tower", "text_tower", "layers"]
    heads += ["image_difference", "text_difference"]
    file = csv.DictWriter(
        text, [*heads, *METHODS, "memory", "note"], lineterminator="\n", restval=""
    )
    file.writeheader()
    for row in rows:
        if "methods" not in row:
            note = row.get("error") or f"needs {row['missing']}"
            file.writerow({"architecture": row["arch"], "note": note})
            continue
        times = {
            name: answer for name, answer in row["methods"].items() if isinstance(answer, float)
        }
        seconds = {name: f"{times[name]:.2f}" if name in times else "refused" for name in METHODS}
        notes = dict.fromkeys(
            answer for answer in row["methods"].values() if isinstance(answer, str)
        )
        differences = [f"{difference:.0e}" for difference in row["differences"]]
        values = [
            row["arch"],
            row["weights"],
            row["tower"],
            text_tower(row["arch"]),
            row["layers"],
            *differences,
        ]
        numbers = {"memory": f"{row['memory']:.2g}", "note": next(iter(notes), "")}
        file.writerow(dict(zip(heads, values, strict=True)) | seconds | numbers)
    return text.getvalue()


def section(rows: list[dict[str, Any]], largest: int, narrow: bool = False) -> str:
    """The section of the page: one row for the architectures with the same kinds of towers and the
    same answers.
    """
    done = [row for row in rows if "methods" in row]
    counts = {
        name: sum(isinstance(row["methods"][name], float) for row in done) for name in METHODS
    }
    same = sum(max(row["differences"]) <= 1e-5 for row in done)
    vits = sum(row["tower"] in VITS for row in done)
    built = NARROW if narrow else WIDE.format(largest=largest)
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in done:
        answers = (
            "ok" if isinstance(row["methods"][name], float) else "refused" for name in METHODS
        )
        families.setdefault((row["tower"], text_tower(row["arch"]), *answers), []).append(row)
    facts = {
        "version": open_clip.__version__,
        "all": len(rows),
        "same": same,
        "vits": vits,
        "built": built,
    }
    text = SECTION.format(
        **facts, **counts, methods=" | ".join(METHODS), rules=" --- |" * (5 + len(METHODS))
    )
    for (tower, texts, *answers), family in sorted(families.items()):
        sizes = sorted(row["weights"] / 1e6 for row in family)
        weights = f"{sizes[0]:,.0f} to {sizes[-1]:,.0f} M"
        cells = [
            f"`{tower}`",
            texts,
            str(len(family)),
            f"`{family[0]['arch']}`",
            weights,
            *answers,
        ]
        text += f"| {' | '.join(cells)} |\n"
    missing = [f"`{row['arch']}`" for row in rows if "methods" not in row]
    return text + (f"\nNot tried (the file says why): {', '.join(missing)}.\n" if missing else "")


def main() -> None:
    args = parse_arguments()
    known = dict.fromkeys(arch for arch, _ in open_clip.list_pretrained())
    names = args.names or sorted(known, key=str.lower)
    kept = (
        [json.loads(line) for line in args.rows.read_text().splitlines()]
        if args.rows and args.rows.exists()
        else []
    )
    rows = {row["arch"]: row for row in kept if "error" not in row}
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(
            partial(attempt, largest=args.largest, narrow=args.narrow),
            [name for name in names if name not in rows],
        ):
            rows[row["arch"]] = row
            print(json.dumps(row), flush=True)
            if args.rows:
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if not args.names:
        listed = [rows[name] for name in names]
        write_text(FIGURES, figures(listed))
        write_text(
            PAGE,
            PAGE.read_text().partition(MARK)[0] + MARK + section(listed, args.largest, args.narrow),
        )


if __name__ == "__main__":
    main()
