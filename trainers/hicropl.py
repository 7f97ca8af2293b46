from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from clip import Edit, ImageOutput, Schedule, TextPrompts
from common.errors import UsageError

from .base import Method, require_vit
from .base.compat import optimizer_of
from .base.prompted import PromptedCLIP, normalize
from .base.prompts import (
    TemplatePrompts,
    check_depth,
    gaussian,
    start_context,
    text_width,
    vision_width,
)
from .base.settings import Accepts, MethodSettings
from .base.teacher import cosine_distance, unit_texts

HEADS = 8
OLD_NAMES = {"text_token_query": "text_proxy_token", "img_token_query": "visual_proxy_token"}


@dataclass(frozen=True)
class HiCroPLSettings(MethodSettings):
    """Prompts of the first CROSS_LAYER layers are mapped from the text tower to the image tower,
    those behind them back. FLOW copied stores the mapped prompts before each step, as published, so
    that the maps learn nothing; with gradient they learn. LAMBD weighs the consistency with the
    frozen CLIP, which is the only TEACHER_NAME.
    """

    N_CTX: int = 2
    CTX_INIT: str = "a photo of a"
    PROMPT_DEPTH: int = 9
    CROSS_LAYER: int = 6
    LAMBD: int | float = 12.0
    FLOW: Literal["copied", "gradient"] = "copied"
    TEACHER_NAME: str = ""
    ranges = {"CROSS_LAYER": (1, 100), "LAMBD": (0, 1_000_000)}

    def check(self):
        if self.CROSS_LAYER >= self.PROMPT_DEPTH:
            fault = f"CROSS_LAYER is {self.CROSS_LAYER}, and PROMPT_DEPTH {self.PROMPT_DEPTH}"
            raise UsageError(fault, "give fewer layers than prompts have")


def attention(width: int) -> nn.MultiheadAttention:
    """Raises UsageError for a width that its heads do not divide."""
    if width % HEADS:
        fault = f"HiCroPL has {HEADS} heads, and this backbone a tower of width {width}"
        raise UsageError(fault, "choose another backbone")
    return nn.MultiheadAttention(width, HEADS)


class Pool(nn.Module):
    """A proxy row p (1, width) reads the prompts X (n, width) of a layer: ln_2(p + MHA(ln_1 p,
    ln_1 X)).
    """

    def __init__(self, width: int):
        super().__init__()
        self.attn = attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, proxy: Tensor, prompts: Tensor) -> Tensor:
        keys = self.ln_1(prompts)
        read = self.attn(self.ln_1(proxy), keys, keys, need_weights=False)[0]
        pooled: Tensor = self.ln_2(proxy + read)
        return pooled


class Map(nn.Module):
    """Prompts (rows, width) from themselves and the proxy rows (layers, other width) of the other
    tower.
    """

    def __init__(self, width: int, other: int):
        super().__init__()
        self.attn = attention(width)
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(other, width)
        self.linear_v = nn.Linear(other, width)
        self.ln_1 = nn.LayerNorm(width)
        self.ffn = nn.Sequential()
        self.ffn.add_module("c_fc", nn.Linear(width, 4 * width))
        self.ffn.add_module("gelu", QuickGELU())
        self.ffn.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, prompts: Tensor, proxies: Tensor) -> Tensor:
        x = self.linear_q(prompts)
        keys = self.ln_1(self.linear_k(proxies))
        values = self.ln_1(self.linear_v(proxies))
        x = x + self.attn(self.ln_1(x), keys, values, need_weights=False)[0]
        mapped: Tensor = x + self.ffn(self.ln_2(x))
        return mapped


def copies(module: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList(deepcopy(module) for _ in range(count))


class HiCroPLPrompts(TemplatePrompts):
    """Deep prompts of both towers, some of which two networks map across the towers (Zheng et al.,
    2025).

    Attributes:
        stored: whether the prompts are used as they are, because the mapped ones are in them.
    """

    stored = False

    def __init__(self, clip, classnames: list[str], settings: HiCroPLSettings):
        depth = settings.PROMPT_DEPTH
        widths = text_width(clip), vision_width(clip)
        words, ctx = start_context(clip, settings.N_CTX, settings.CTX_INIT)
        super().__init__("{}.", classnames, clip, f"{words} ")
        self.crossing = settings.CROSS_LAYER
        self.ctx = ctx
        self.cross_prompts_text = nn.ParameterDict(
            {str(layer): gaussian(settings.N_CTX, widths[0]) for layer in range(1, depth)}
        )
        vision = gaussian(settings.N_CTX, widths[1])
        self.cross_prompts_visual = nn.ParameterList(vision.detach().clone() for _ in range(depth))
        self.text2visual_net = Map(widths[1], widths[0])
        self.visual2text_net = Map(*widths)
        behind = depth - self.crossing
        self.attn_pooling_text_nets = copies(Pool(widths[0]), self.crossing)
        self.attn_pooling_visual_nets = copies(Pool(widths[1]), behind)
        proxies = [torch.randn(1, width) for width in widths]
        self.text_proxy_token = nn.ParameterList(proxies[0].clone() for _ in range(self.crossing))
        self.visual_proxy_token = nn.ParameterList(proxies[1].clone() for _ in range(behind))

    @property
    def texts(self) -> list[Tensor]:
        """The text prompts of each layer, (n, text width), before they are mapped."""
        return [self.ctx, *self.cross_prompts_text.values()]

    def mapped_vision(self) -> list[Tensor]:
        """The vision prompts of the first layers, from the text prompts there."""
        parts = zip(self.attn_pooling_text_nets, self.text_proxy_token, self.texts, strict=False)
        proxies = torch.cat([pool(proxy, text) for pool, proxy, text in parts])
        prompts = torch.cat(list(self.cross_prompts_visual)[: self.crossing])
        return list(self.text2visual_net(prompts, proxies).chunk(self.crossing))

    def mapped_texts(self) -> list[Tensor]:
        """The text prompts of the layers behind them, from the vision prompts there."""
        vision = list(self.cross_prompts_visual)[self.crossing :]
        parts = zip(self.attn_pooling_visual_nets, self.visual_proxy_token, vision, strict=True)
        proxies = torch.cat([pool(proxy, prompts) for pool, proxy, prompts in parts])
        prompts = torch.cat(self.texts[self.crossing :])
        return list(self.visual2text_net(prompts, proxies).chunk(len(vision)))

    @torch.no_grad()
    def store(self) -> None:
        """Write the mapped prompts into the prompts."""
        vision = self.mapped_vision()
        texts = self.mapped_texts()
        for prompts, mapped in zip(self.cross_prompts_visual, vision, strict=False):
            prompts.copy_(mapped)
        for prompts, mapped in zip(self.texts[self.crossing :], texts, strict=True):
            prompts.copy_(mapped)

    def text(self, image_features: Tensor) -> TextPrompts:
        texts = self.texts
        if not self.stored:
            texts = [*texts[: self.crossing], *self.mapped_texts()]
        deep = [Edit(), *(Edit(len(prompts), prompts) for prompts in texts[1:])]
        return TextPrompts(self.ids, texts[0], deep=deep)

    def vision(self) -> Schedule:
        prompts: Sequence[Tensor] = list(self.cross_prompts_visual)
        if not self.stored:
            prompts = [*self.mapped_vision(), *prompts[self.crossing :]]
        first, *deep = prompts
        return [Edit(add=first), *(Edit(len(one), one) for one in deep)]


@dataclass(frozen=True)
class BothOutputs(ImageOutput):
    """The sum of the unit features under the prompts and of the frozen CLIP, and the latter."""

    frozen: Tensor | None = None


class HiCroPLCLIP(PromptedCLIP):
    """Its features are unit sums of its own and of the frozen CLIP's."""

    class_features: Tensor  # (classes, joint), unit, of the frozen CLIP for the sentences

    def image_output(self, images: Tensor | ImageOutput) -> ImageOutput:
        if isinstance(images, ImageOutput):
            return images
        own = super().image_output(images)
        with torch.no_grad():
            frozen = normalize(self.towers.encode_image(self.frozen, images).feature)
        parts = {**vars(own), "feature": normalize(own.feature) + frozen}
        return BothOutputs(**parts, frozen=frozen)

    def of_text(self, feature: Tensor) -> Tensor:
        return normalize(normalize(feature) + self.class_features.float())


@TRAINER_REGISTRY.register()
class HiCroPL(Method):
    """Hierarchical cross-modal prompts: text prompts guide the image tower below, and the reverse
    above (Zheng et al., ICCV 2025).
    """

    Settings = HiCroPLSettings
    takes_plugins = False
    Model = HiCroPLCLIP
    kind = "extra text"
    reads_sentences = True
    needs_sentences = True
    checkpoint_folder = "VLPromptLearner"
    published = tuple(
        f"prompt_learner.{name}"
        for name in (
            "ctx",
            *("cross_prompts_text.*", "cross_prompts_visual.*"),
            *("text2visual_net.*", "visual2text_net.*"),
            *("attn_pooling_text_nets.*", "attn_pooling_visual_nets.*"),
            *("text_proxy_token.*", "visual_proxy_token.*"),
        )
    )
    # The second name of ctx, and the teacher
    published_unused = ("prompt_learner.cross_prompts_text.0", "prompt_learner.ZS_image_encoder.*")
    published_keys = {"OPTIM.EPS": (1e-3, Accepts(int | float, 0, 1))}

    def build_prompts(self, clip, classnames):
        s = self.settings
        backbone = self.cfg.MODEL.BACKBONE.NAME
        require_vit(clip, "HiCroPL", backbone)
        check_depth(clip, "TRAINER.HICROPL.PROMPT_DEPTH", s.PROMPT_DEPTH)
        if s.TEACHER_NAME not in ("", backbone):
            fault = f"TRAINER.HICROPL.TEACHER_NAME is {s.TEACHER_NAME}, and the backbone {backbone}"
            raise UsageError(fault, "leave it out: the teacher is the frozen backbone")
        return HiCroPLPrompts(clip, classnames, s)

    def after_build(self):
        self.own_sentences()
        self.model.register_buffer("class_features", unit_texts(self), persistent=False)

    def before_load(self, checkpoint, path):
        state = checkpoint["state_dict"]
        for old, new in OLD_NAMES.items():
            state = {key.replace(old, new): value for key, value in state.items()}
        return super().before_load({**checkpoint, "state_dict": state}, path)

    def build_optimizer(self):
        options = self.cfg.OPTIM.clone()
        options.defrost()
        options.ADAM_EPS = self.published_value("OPTIM.EPS")
        optimizer = optimizer_of(self.model, options)
        return optimizer, self.build_schedule(optimizer)

    def both_passes(self, images, labels):
        learner = self.model.prompt_learner
        learner.stored = self.settings.FLOW == "copied"
        if learner.stored:
            learner.store()
        logged = super().both_passes(images, labels)
        learner.stored = False
        return logged

    def loss(self, output, labels):
        """Cross-entropy, and the distances of both features from the frozen CLIP's."""
        ce = F.cross_entropy(output.logits, labels)
        text = cosine_distance(output.text, self.model.class_features.float())
        image = cosine_distance(output.image, output.tower.frozen)
        loss = ce + self.settings.LAMBD * (text + image)
        return loss, {"loss_ce": ce, "loss_text": text, "loss_image": image}
