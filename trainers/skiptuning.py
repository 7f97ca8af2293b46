import math
import random
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from torch import Tensor
from torch.utils.data import DataLoader

from clip import CLIP, image_blocks, text_blocks
from clip.anatomy import image_tower
from clip.plain import embed, end_of_texts, mask_of, text_output
from clip.tokenizer import tokenizer_of
from common.errors import UsageError

from .base import Method
from .base.checkpoints import SAME_SETTINGS, tensors_of
from .base.compat import optimizer_of
from .base.copies import CopyLearner, require_clip
from .base.features import loader_like
from .base.prompted import PromptedCLIP, normalize
from .base.prompts import check_layer
from .base.settings import Accepts, MethodSettings
from .base.teacher import unit_texts

TEXTS = 256  # classes whose lower blocks are computed at a time
OF_ONE_CLASS = 4  # images a class, from which on a batch has images of one class
FIRST = 1e4  # rank of the labels of a batch
# Of blocks
OUTSIDE = [
    "ln_post.weight",
    "ln_post.bias",
    "proj",
    "ln_final.weight",
    "ln_final.bias",
    "text_projection",
]
# Published sentences
TEMPLATES = {
    **dict.fromkeys(("ImageNet", "ImageNetV2", "SUN397"), "a photo of a {}."),
    "ImageNetSketch": "a sketch of a {}.",
    "ImageNetA": "a bad photo of a {}.",
    "ImageNetR": "a rendition of a {}.",
    **dict.fromkeys(("Caltech101", "DescribableTextures"), "itap of a {}."),
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a bright photo of a {}, a type of aircraft.",
    "Food101": "a photo of the nice {}.",
    "OxfordFlowers": "a close-up photo of a {}.",
    "OxfordPets": "a bad photo of a {}, a type of pet.",
    "StanfordCars": "a photo of the {}, a type of car.",
    "UCF101": "a photo of a {}, a type of sport.",
}


@dataclass(frozen=True)
class SkipTuningSettings(MethodSettings):
    """Blocks from START_LAYER on learn, counted from 0. The classes of a step are those with the
    highest ranks: TOP_RATIO of them, or so many above 1, and at most MAX_TOP; and some drawn ones
    below, the fewer the smaller LAMBDA.
    """

    START_LAYER: int = 6
    TOP_RATIO: int | float = 0.5
    MAX_TOP: int = 50
    LAMBDA: int | float = 0.3
    ranges = {
        "START_LAYER": (0, 100),
        "TOP_RATIO": (1e-6, 100_000),
        "MAX_TOP": (1, 100_000),
        "LAMBDA": (1e-3, 1000),
    }

    def check(self):
        if self.PREC == "amp":
            raise UsageError("PREC is amp", "give fp16, as published, or fp32")

    def first_classes(self, classes: int) -> int:
        """How many of the classes always count; all of them without skipping."""
        if self.TOP_RATIO == 1:
            return classes
        top = self.TOP_RATIO * classes if self.TOP_RATIO < 1 else min(self.TOP_RATIO, classes)
        return min(math.ceil(top), self.MAX_TOP, classes)


def saved_name(name: str) -> str:
    """The name of a tensor of the CLIP in published checkpoints."""
    if name.startswith("visual."):
        return f"image_encoder.{name.removeprefix('visual.')}"
    return f"text_encoder.{name}"


def same_in_half(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in fp16, in which published code saves them."""
    return torch.equal(a.half().cpu(), b.half().cpu())


class SkipLearner(CopyLearner):
    """Copies of all tensors behind the first blocks, by their names in published checkpoints."""

    def __init__(self, template: str, classnames: list[str], clip: CLIP, start: int):
        copies = {}
        for name, _ in clip.named_parameters():
            inner = name.removeprefix("visual.")
            block = inner.removeprefix("transformer.resblocks.").partition(".")[0]
            if inner in OUTSIDE or (block.isdigit() and int(block) >= start):
                copies[name] = saved_name(name)
        super().__init__(template, classnames, clip, copies)


class SkipCLIP(PromptedCLIP):
    """Both towers, with their lower and upper blocks apart in training."""

    start: int  # the first block that learns

    @torch.no_grad()
    def lower_image(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, tokens, width), the input of the first block that learns."""
        tower = image_tower(self.frozen)
        x = tower.norm(tower.embed(images.to(next(self.frozen.visual.parameters()).dtype)))
        for layer in range(self.start):
            x = tower.layer(layer, x)
        return x

    def upper_image(self, x: Tensor) -> Tensor:
        """That input -> unit features (batch, joint)."""
        tower = image_tower(self.clip)
        for layer in range(self.start, len(image_blocks(self.clip))):
            x = tower.layer(layer, x)
        return normalize(tower.pool(x))

    @torch.no_grad()
    def lower_text(self) -> Tensor:
        """(classes, tokens, width): the same for the texts, up to the end of the longest."""
        prompts = self.prompt_learner.text(torch.empty(0))
        clip = self.frozen
        x = embed(clip, prompts, clip.transformer.get_cast_dtype(), tokenizer_of(clip).start)
        x = x[:, : int(end_of_texts(clip, prompts.ids).max()) + 1]
        x = x + clip.positional_embedding[: x.shape[1]].to(x.dtype)
        parts = list(x.split(TEXTS))
        for block in text_blocks(clip)[: self.start]:
            parts = [block(part, attn_mask=mask_of(clip, part, None, block)) for part in parts]
        return torch.cat(parts)

    def upper_text(self, x: Tensor, rows: Tensor) -> Tensor:
        """That input of some classes, whose numbers are `rows` -> unit features (rows, joint)."""
        clip = self.clip
        for block in text_blocks(clip)[self.start :]:
            x = block(x, attn_mask=mask_of(clip, x, None, block))
        end = end_of_texts(clip, self.prompt_learner.ids[rows])
        return normalize(text_output(clip, x[torch.arange(len(x), device=x.device), end]))


def drawn_ranks(classes: int, first: int, scale: float) -> Tensor:
    """Which ranks of classes count, (classes,): the first ones, and others with a probability that
    falls from 1 to 0 as an exponential density of this scale does.
    """
    behind = classes - first
    q = torch.exp(-torch.linspace(0, 5, behind) / scale)
    q = (q - q.min()) / (q.max() - q.min())  # NaN for one class, which no number is below
    return torch.rand(classes) < torch.cat([torch.full((first,), 2.0), q])


def class_batches(labels: list[int], size: int, by_class: bool) -> list[list[int]]:
    """The images of each batch, which are of one class, or drawn from all that are left."""
    left: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        left.setdefault(label if by_class else 0, []).append(index)
    batches = []
    while left:
        label = random.choice(list(left)) if by_class else 0
        if len(left[label]) >= size:
            batches.append(random.sample(left[label], size))
            left[label] = [index for index in left[label] if index not in batches[-1]]
        if len(left[label]) < size:
            del left[label]
    return batches


@TRAINER_REGISTRY.register()
class SkipTuning(Method):
    """The upper blocks of both towers learn, on kept outputs of the lower ones and on the classes
    near the batch (Wu et al., CVPR 2025).
    """

    Settings = SkipTuningSettings
    takes_plugins = False
    reads_template = True
    Model = SkipCLIP
    model: SkipCLIP
    checkpoint_folder = "learnable_params"
    checkpoint_has_learner_only = True
    published_keys = {"OPTIM.NEW_LR": (0.0, Accepts(int | float, 0, 1000))}
    ranks: Tensor | None = None  # which count, drawn once in a run
    lower_texts: Tensor | None = None

    def build_prompts(self, clip, classnames):
        require_clip(clip, "SkipTuning", self.cfg.MODEL.BACKBONE.NAME)
        start = self.settings.START_LAYER
        check_layer(clip, "TRAINER.SKIPTUNING.START_LAYER", start, ("text", "vision"))
        return SkipLearner(self.template(TEMPLATES), classnames, clip, start)

    def after_build(self):
        self.model.start = self.settings.START_LAYER

    @property
    def by_class(self) -> bool:
        """Whether a batch has images of one class."""
        shots: int = self.cfg.DATASET.NUM_SHOTS
        return shots >= OF_ONE_CLASS

    def check_training(self):
        super().check_training()
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        counts = Counter(item.label for item in self.images.dataset.train_x)
        most = max(counts.values()) if self.by_class else counts.total()
        if most < size:
            fault = f"DATALOADER.TRAIN_X.BATCH_SIZE is {size}, and "
            fault += "batches have images of one class" if self.by_class else "no batch is smaller"
            raise UsageError(fault, f"give at most {most}, for so many images")

    def before_load(self, checkpoint, path):
        """A published checkpoint has all of the towers. Raises UsageError if a part of them that
        does not learn here is not the backbone's.
        """
        if not checkpoint.get("metadata"):
            learned = self.model.prompt_learner.state_dict()
            state = tensors_of(checkpoint)
            for name, frozen in self.model.frozen.named_parameters():
                key = saved_name(name)
                if key in state.keys() - learned.keys() and not same_in_half(state[key], frozen):
                    raise UsageError(f"{key} in {path} is not the backbone's", SAME_SETTINGS, path)
            state = {key: one for key, one in state.items() if key in learned}
            checkpoint = {**checkpoint, "state_dict": state}
        return super().before_load(checkpoint, path)

    def build_optimizer(self):
        """The image tower learns with OPTIM.NEW_LR, if that is not 0."""
        towers = dict(self.model.prompt_learner.named_children())
        rate = self.published_value("OPTIM.NEW_LR") or self.cfg.OPTIM.LR
        image = {"params": list(towers["image_encoder"].parameters()), "lr": rate}
        text = {"params": list(towers["text_encoder"].parameters())}
        optimizer = optimizer_of(None, self.cfg.OPTIM, [text, image])
        return optimizer, self.build_schedule(optimizer)

    def batches(self, loader):
        """The batches of an epoch: the outputs of the lower blocks for views of all images."""
        items = []
        for batch in loader_like(loader, loader.dataset):
            images, labels = super().parse_batch(batch)
            outputs = self.model.lower_image(images).cpu()
            items += [{"img": x, "label": y} for x, y in zip(outputs, labels.tolist(), strict=True)]
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        of_epoch = class_batches([item["label"] for item in items], size, self.by_class)
        return DataLoader(items, batch_sampler=of_epoch)

    def classes_of_step(self, image: Tensor, labels: Tensor) -> Tensor:
        """The classes that count, in their order, by unit features (batch, joint)."""
        classes = len(self.class_names)
        first = self.settings.first_classes(classes)
        if first == classes:
            return torch.arange(classes, device=image.device)
        if self.ranks is None:
            self.ranks = drawn_ranks(classes, first, self.settings.LAMBDA)
        nearness = (image.detach() @ self.zero_shot.T).amax(dim=0)
        nearness[labels] = FIRST
        order = nearness.argsort(descending=True, stable=True)
        return order[self.ranks.to(order.device)].sort().values

    def both_passes(self, images, labels):
        model = self.model
        if self.lower_texts is None:
            self.lower_texts = model.lower_text()
            self.zero_shot = unit_texts(self, self.template(TEMPLATES))
        image = model.upper_image(images)
        rows = self.classes_of_step(image, labels)
        logits = model.logits(image, model.upper_text(self.lower_texts[rows], rows))
        # A label on a rank that does not count is class 0 of the step, as published
        labels = (rows == labels[:, None]).int().argmax(dim=1)
        loss = F.cross_entropy(logits, labels)
        self.training.optim.zero_grad()
        self.backward(loss, {})
        return {"loss": loss.detach(), "acc": compute_accuracy(logits.detach(), labels)[0]}

    def run_state(self):
        return super().run_state() | ({} if self.ranks is None else {"ranks": self.ranks})

    def load_run_state(self, state):
        super().load_run_state(state)
        self.ranks = state.get("ranks")
