"""Pre-train the small CLIP on drawn images and their captions: see
`python benchmarks/pretrain_small_clip.py --help`.
"""

import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import normalize
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from clip import tokenize
from clip.backbone import CLIP, VOCABULARY
from common.files import write_bytes
from common.start import Parser, at_least, path
from datasets.small_world import drawing
from datasets.small_world.drawing import Style, Subject, pick
from runs.session import run_command

DESCRIPTION = """Pre-train the small CLIP on drawn images and their captions. It takes an hour on
two CPU cores, and cannot be resumed. The output folder gets small.safetensors, weights for
--backbone (fp16, with the parameter names of OpenAI's CLIP)."""
WIDTH = 128
LAYERS = 12
PATCH = 16
LR = 1e-3
UNSEEN = 1000  # images to measure retrieval on
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
the new old very good bad big web best first last this that his her our free art style type data set
view
"""


def held_out(*names: object) -> bool:
    """Whether pre-training leaves a combination out: one in five, by a checksum of its names, or
    any unseen word.
    """
    return (
        not UNSEEN_WORDS.isdisjoint(names)
        or zlib.crc32(" ".join(map(str, names)).encode()) % 5 == 0
    )


def sample_subject(rng: np.random.Generator) -> Subject:
    """A random subject that is not held out."""
    combination: tuple[str | None, ...]
    while True:
        kind = rng.uniform()
        if kind < 0.2:
            subject = Subject(ground=pick(rng, drawing.GROUNDS))
            if rng.uniform() < 0.75:
                subject = Subject(ground=subject.ground, feature=pick(rng, drawing.FEATURES))
            combination = (subject.ground, subject.feature)
        else:
            colour, texture, shape = (
                pick(rng, names) for names in (drawing.COLOURS, drawing.TEXTURES, drawing.SHAPES)
            )
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
    """A random caption of a subject; it may leave out the colour or the texture."""
    if subject.ground:
        text = pick(rng, LANDS).format(subject.words)
    else:
        colour, texture = (
            value if rng.uniform() > 0.25 else None for value in (subject.colour, subject.texture)
        )
        if subject.shape == "pattern" and not (colour or texture):
            texture = subject.texture
        words = Subject(colour, texture, subject.shape, subject.count).words
        text = pick(rng, THINGS).format(words)
        if subject.count and rng.uniform() < 0.6:
            text = text.replace(f"a {words}", words)
    if rng.uniform() < 0.2:  # random words in front, as many as a prompt has vectors
        text = " ".join(pick(rng, FILLERS.split()) for _ in range(rng.integers(1, 17))) + " " + text
    return text


def draw_one(seed: tuple[int, int]) -> tuple[Subject, np.ndarray]:
    """A subject and its image (64, 64, 3), uint8."""
    rng = np.random.default_rng(seed)
    subject = sample_subject(rng)
    return subject, np.asarray(drawing.draw(subject, Style(), rng))


def draw_pairs(seed: int, number: int) -> tuple[list[Subject], np.ndarray]:
    """Subjects and their images (number, 64, 64, 3), uint8."""
    seeds = [(seed, index) for index in range(number)]
    drawn = process_map(draw_one, seeds, chunksize=200, desc="drawing")
    subjects, images = zip(*drawn, strict=True)
    return list(subjects), np.stack(images)


def encode_images(model: CLIP, images: np.ndarray) -> Tensor:
    """(n, 64, 64, 3) uint8 -> (n, WIDTH), normalised."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return F.normalize(
        model.visual(normalize(pixels, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)), dim=-1
    )


def encode_texts(model: CLIP, texts: list[str]) -> Tensor:
    """(n, WIDTH), normalised. Texts of similar length share a batch, cut after its last EOT."""
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


@torch.no_grad()
def retrieval(model: CLIP, subjects: list[Subject], images: np.ndarray) -> float:
    """The fraction of images whose own words are the most similar among those of their batch of
    250.
    """
    right = 0
    for start in range(0, len(subjects), 250):
        part = slice(start, start + 250)
        words = [f"a photo of a {subject.words}." for subject in subjects[part]]
        best = (encode_images(model, images[part]) @ encode_texts(model, words).T).argmax(1)
        right += sum(words[i] == words[j] for i, j in enumerate(best.tolist()))
    return right / len(subjects)


def build_model() -> CLIP:
    """A CLIP of random weights with the sizes of the small one."""
    tower = {"width": WIDTH, "layers": LAYERS}
    vision = tower | {"image_size": drawing.SIZE, "patch_size": PATCH, "head_width": 64}
    text = tower | {"context_length": 77, "vocab_size": VOCABULARY, "heads": WIDTH // 64}
    return CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text, quick_gelu=True)


def contrastive_loss(model: CLIP, images: np.ndarray, texts: list[str]) -> Tensor:
    """CLIP's loss, the mean over images and texts. Pairs with the same text count as matches."""
    logits = model.logit_scale.exp() * encode_images(model, images) @ encode_texts(model, texts).T
    same = torch.tensor([[a == b for b in texts] for a in texts]).float()
    matches = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def optimiser_of(
    model: CLIP, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay of vectors; 100 steps of warm-up, then a cosine."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, LR, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        warm = min(1, (step + 1) / 100)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def batch_of(
    step: int, size: int, subjects: list[Subject], seed: int
) -> tuple[np.ndarray, list[str]]:
    """The numbers of the images of a step, and captions; each epoch has an order of its own."""
    epoch, position = divmod(step, len(subjects) // size)
    order = np.random.default_rng([seed, 1, epoch]).permutation(len(subjects))
    chosen = order[position * size : (position + 1) * size]
    rng = np.random.default_rng([seed, 2, step])
    return chosen, [caption(subjects[index], rng) for index in chosen]


def batches_of(
    images: int, steps: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The pixels and captions of each step."""
    subjects, pixels = draw_pairs(seed, images)
    for step in range(steps):
        chosen, captions = batch_of(step, size, subjects, seed)
        yield pixels[chosen], captions


def train(images: int, steps: int, batch: int, seed: int) -> CLIP:
    """A CLIP that has learned from so many drawn images, in `steps` steps of `batch` images and
    captions.
    """
    torch.manual_seed(seed)
    model = build_model().train()
    optimiser, scheduler = optimiser_of(model, steps)
    batches = batches_of(images, steps, batch, seed)
    for pixels, captions in (bar := tqdm(batches, "training", steps)):
        loss = contrastive_loss(model, pixels, captions)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=DESCRIPTION)
    add = parser.add_argument
    add("--output", type=path, default=Path("output/small_clip"), help="folder to write to")
    add("--images", type=at_least(1), default=48_000, help="number of training images (48000)")
    add("--steps", type=at_least(1), default=2_000, help="number of training steps (2000)")
    add("--batch", type=at_least(2), default=256, help="images and captions per step (256)")
    text = "of drawings, captions and initial weights (0)"
    add("--seed", type=at_least(0), default=0, help=text)
    args = parser.parse_args(argv)
    if args.batch > args.images:
        parser.error(f"--batch {args.batch} is more than --images {args.images}: lower it")
    args.output.mkdir(parents=True, exist_ok=True)
    model = train(args.images, args.steps, args.batch, args.seed)
    print(
        "Retrieval among 250 unseen images: "
        f"{100 * retrieval(model, *draw_pairs(args.seed + 1, UNSEEN)):.1f}%"
    )
    file = args.output / "small.safetensors"
    write_bytes(
        file, save({name: value.half().contiguous() for name, value in model.state_dict().items()})
    )
    print(f"Written: {file}, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main, "from the start")
