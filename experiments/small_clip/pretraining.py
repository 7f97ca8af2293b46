"""Pre-train the small CLIP on drawn images and their captions: `python tools/pretrain_small_clip.py`.

Written to the output folder: the drawn images (once), a checkpoint (the same command goes on from it), the loss and
retrieval curves (history.json, curves.png) and at the end small.safetensors: fp16, OpenAI's names, for `--backbone`.
"""

import argparse
import json
import math
import os
import pickle
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from clip import tokenize
from clip.backbone import CLIP, VOCABULARY
from common.errors import UsageError
from common.files import write_text
from common.start import add_common_options
from datasets.small_world import drawing
from datasets.small_world.drawing import Style, Subject, pick

from ..arguments import at_least
from ..studies.executor import prepare_process

WIDTH, LAYERS, PATCH = 128, 12, 16
UNSEEN = 1000  # images that retrieval is measured on
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
UNSEEN_WORDS = {"turquoise", "crescent", "zigzag"}
THINGS = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of a {}.",
    "{}",
    "a {}.",
    "the {}.",
    "there is a {} here.",
    "a small picture that shows a {}.",
    "look at this simple drawing, you can see a {} in it.",
    "a {} that somebody has drawn in front of an empty background.",
)
LANDS = (
    "a photo of {}.",
    "a satellite photo of {}.",
    "an aerial image of {}.",
    "{} seen from above.",
    "{}",
    "a map of {}.",
    "this picture was taken from far above and it shows {}.",
    "a photo of a {}.",
)
FILLERS = """
the new old very good bad big web best first last this that his her our free art style type data set view
"""


def held_out(*names) -> bool:
    """Whether a combination is kept from pre-training: one in five, by a checksum of its names, or an unseen word."""
    return not UNSEEN_WORDS.isdisjoint(names) or zlib.crc32(" ".join(map(str, names)).encode()) % 5 == 0


def sample_subject(rng: np.random.Generator) -> Subject:
    """Anything that pre-training may see."""
    while True:
        kind = rng.uniform()
        if kind < 0.2:
            subject = Subject(ground=pick(rng, drawing.GROUNDS))
            if rng.uniform() < 0.75:
                subject = Subject(ground=subject.ground, feature=pick(rng, drawing.FEATURES))
            combination = (subject.ground, subject.feature)
        else:
            colour, texture, shape = (pick(rng, names) for names in (drawing.COLOURS, drawing.TEXTURES, drawing.SHAPES))
            if kind < 0.35:
                shape = "pattern"
            count = int(rng.integers(1, 6)) if kind > 0.8 else None
            subject = Subject(colour, texture, shape, count)
            if count and held_out(count, shape):
                continue
            combination = (colour, texture, shape)
        if not held_out(*combination):
            return subject


def caption(subject: Subject, rng: np.random.Generator) -> str:
    """One of many ways to say it, not always in full."""
    if subject.ground:
        text = pick(rng, LANDS).format(subject.words)
    else:
        colour, texture = (value if rng.uniform() > 0.25 else None for value in (subject.colour, subject.texture))
        if subject.shape == "pattern" and not (colour or texture):
            texture = subject.texture
        words = Subject(colour, texture, subject.shape, subject.count).words
        text = pick(rng, THINGS).format(words)
        if subject.count and rng.uniform() < 0.6:
            text = text.replace(f"a {words}", words)
    if rng.uniform() < 0.2:  # words that say nothing: prompts are of that kind, and as long
        text = " ".join(pick(rng, FILLERS.split()) for _ in range(rng.integers(1, 17))) + " " + text
    return text


def draw_one(seed: tuple[int, int]) -> tuple[Subject, np.ndarray]:
    rng = np.random.default_rng(seed)
    subject = sample_subject(rng)
    return subject, np.asarray(drawing.draw(subject, Style(), rng))


def draw_pairs(folder: Path, seed: int, number: int) -> tuple[list[Subject], np.ndarray]:
    """Subjects and images (number, 64, 64, 3) uint8, kept in the folder."""
    images_file, subjects_file = folder / f"images_{seed}_{number}.npy", folder / f"subjects_{seed}_{number}.json"
    if not subjects_file.is_file():
        images, subjects = np.empty((number, drawing.SIZE, drawing.SIZE, 3), np.uint8), []
        pool = ProcessPoolExecutor(os.cpu_count(), initializer=prepare_process, initargs=[1])
        try:
            drawn = pool.map(draw_one, ((seed, index) for index in range(number)), chunksize=200)
            for index, (subject, image) in enumerate(tqdm(drawn, "drawing", total=number)):
                images[index] = image
                subjects.append(vars(subject))
        finally:  # Ctrl-C does not wait for the rest
            pool.shutdown(cancel_futures=True)
        np.save(images_file, images)
        write_text(subjects_file, json.dumps(subjects))  # the mark that the images are there
    try:
        return [Subject(**row) for row in json.loads(subjects_file.read_text())], np.load(images_file)
    except (ValueError, TypeError, EOFError, FileNotFoundError):
        raise UsageError(f"{images_file} or {subjects_file.name} is damaged: delete both to draw them anew") from None


def encode_images(model: CLIP, images: np.ndarray) -> Tensor:
    """(n, 64, 64, 3) uint8 -> (n, WIDTH), normalised."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return F.normalize(model.visual(pixels), dim=-1)


def encode_texts(model: CLIP, texts: list[str]) -> Tensor:
    """(n, WIDTH), normalised. Texts of like length go together, cut after EOT: what follows never reaches it."""
    ids = tokenize(texts).long()
    order = ids.argmax(-1).argsort()
    features = []
    for part in ids[order].split(64):
        ends = part.argmax(-1)
        length = int(ends.max()) + 1
        x = model.token_embedding(part[:, :length]) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        features.append(x[torch.arange(len(part)), ends] @ model.text_projection)
    return F.normalize(torch.cat(features)[order.argsort()], dim=-1)


def retrieval(model: CLIP, subjects: list[Subject], images: np.ndarray) -> float:
    """Part of the images whose own words come first among those of their batch of 250."""
    right = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(subjects), 250):
            part = slice(start, start + 250)
            words = [f"a photo of a {subject.words}." for subject in subjects[part]]
            best = (encode_images(model, images[part]) @ encode_texts(model, words).T).argmax(1)
            right += sum(words[i] == words[j] for i, j in enumerate(best.tolist()))
    model.train()
    return right / len(subjects)


def build_model() -> CLIP:
    vision = {
        "image_size": drawing.SIZE,
        "patch_size": PATCH,
        "layers": LAYERS,
        "width": WIDTH,
        "head_width": 64,
    }
    text = {"context_length": 77, "vocab_size": VOCABULARY, "width": WIDTH, "heads": WIDTH // 64, "layers": LAYERS}
    return CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text, quick_gelu=True)


def train(args: argparse.Namespace) -> tuple[CLIP, list[dict]]:
    """The trained model, and its history: at each checkpoint the step, mean loss since the last, retrieval, seconds.

    Raises:
        UsageError: the checkpoint in the output folder is damaged, or of other settings.
    """
    torch.manual_seed(args.seed)
    model = build_model().train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], args.lr, betas=(0.9, 0.98)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / args.steps)))
    )
    state = {"model": model, "optimiser": optimiser, "scheduler": scheduler}
    settings = {key: getattr(args, key) for key in ("images", "steps", "batch", "lr", "seed")}
    checkpoint = args.output / "checkpoint.pt"
    history = go_on(checkpoint, state, settings) if checkpoint.is_file() else []
    subjects, images = draw_pairs(args.output, args.seed, args.images)
    unseen, unseen_images = draw_pairs(args.output, args.seed + 1, UNSEEN)
    per_epoch = len(subjects) // args.batch
    done = scheduler.last_epoch
    losses, started = [], time.time() - (history[-1]["seconds"] if history else 0)
    for step in (bar := tqdm(range(done, args.steps), "training", initial=done, total=args.steps)):
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([args.seed, 1, epoch]).permutation(len(subjects))
        chosen = order[position * args.batch : (position + 1) * args.batch]
        rng = np.random.default_rng([args.seed, 2, step])
        texts = [caption(subjects[index], rng) for index in chosen]
        image_features, text_features = encode_images(model, images[chosen]), encode_texts(model, texts)
        logits = model.logit_scale.exp() * image_features @ text_features.T
        same = torch.tensor([[a == b for b in texts] for a in texts]).float()  # one text may fit several images
        loss = (F.cross_entropy(logits, same / same.sum(1, keepdim=True))
                + F.cross_entropy(logits.T, same / same.sum(1, keepdim=True))) / 2  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            found = retrieval(model, unseen, unseen_images)
            history.append({"step": step + 1, "loss": sum(losses) / len(losses), "retrieval": found,
                            "seconds": round(time.time() - started)})  # fmt: skip
            tqdm.write(f"step {step + 1}: loss {history[-1]['loss']:.3f}, retrieval among 250 {100 * found:.1f}%")
            losses = []
            write_text(args.output / "history.json", json.dumps(history, indent=1) + "\n")
            partial = checkpoint.with_suffix(".partial")
            saved = {name: part.state_dict() for name, part in state.items()}
            torch.save(saved | {"history": history, "settings": settings}, partial)
            partial.replace(checkpoint)
    return model.eval(), history


def go_on(checkpoint: Path, state: dict, settings: dict) -> list[dict]:
    """Load a checkpoint into the parts of `state`; returns its history."""
    try:
        saved = torch.load(checkpoint, weights_only=True)
        before, history = saved["settings"], saved["history"]
        for name, part in state.items() if before == settings else ():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
        raise UsageError(f"{checkpoint} is damaged: delete it to begin again") from None
    for key in settings:
        if before.get(key) != settings[key]:
            raise UsageError(
                f"{checkpoint} is of a run with --{key} {before.get(key)}, this one has {settings[key]}: "
                "choose another --output, or delete it"
            )
    return history


def plot(history: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    steps = [row["step"] for row in history]
    axes[0].plot(steps, [row["loss"] for row in history])
    axes[0].set(xlabel="step", ylabel="contrastive loss")
    axes[1].plot(steps, [100 * row["retrieval"] for row in history])
    axes[1].set(xlabel="step", ylabel="own words first among 250 (%)", ylim=(0, 100))
    figure.savefig(file, dpi=120)


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no learning rate above 0")
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/small_clip"), help="folder of everything it writes")
    parser.add_argument("--images", type=at_least(1), default=48_000, help="drawn pairs to learn from")
    parser.add_argument("--steps", type=at_least(1), default=2_000, help="batches to learn from")
    parser.add_argument("--batch", type=at_least(2), default=256, help="pairs in a step")
    parser.add_argument("--lr", type=rate, default=1e-3, help="highest learning rate")
    parser.add_argument("--every", type=at_least(1), default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of drawings, captions and first weights")
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.batch > args.images:
        parser.error(f"--batch {args.batch} is more than --images {args.images}: lower it")
    args.output.mkdir(parents=True, exist_ok=True)
    model, history = train(args)
    plot(history, args.output / "curves.png")
    file = args.output / "small.safetensors"
    partial = file.with_suffix(".partial")
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, partial)
    partial.replace(file)
    print(f"Written: {file}, {file.stat().st_size / 1e6:.1f} MB")
