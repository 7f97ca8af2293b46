"""Facts of a backbone's two towers, found by what their modules are: the one place that knows how
these are built.
"""

import math
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from .errors import ClipError


def text_width(clip: Any) -> int:
    """Numbers of a token in the text tower."""
    return word_table(clip).weight.shape[1]


def word_table(clip: Any) -> Any:
    """The token embeddings of the text tower: (texts, positions) -> (texts, positions, width)."""
    text = hugging_face(clip)
    return clip.token_embedding if text is None else text.transformer.get_input_embeddings()


def hugging_face(clip: Any) -> Any:
    """The text tower of the library transformers, or None."""
    return getattr(clip, "text", None)


def text_blocks(clip: Any) -> Any:
    """The layers of the text tower that take prompts and adapters.

    Raises:
        ClipError: it is a tower of Hugging Face, which takes prompts at its input alone.
    """
    if hugging_face(clip) is not None:
        fault = "a text tower of Hugging Face takes prompts at its input only"
        raise ClipError(
            fault,
            "choose a method without deep text prompts and adapters, such as CoOp, KgCoOp or VPT",
        )
    return clip.transformer.resblocks


def reads_as_clip(clip: Any) -> bool:
    """Whether the text tower is read as CLIP's own: causal, at EOT, the largest token."""
    if hugging_face(clip) is not None or getattr(clip, "cls_emb", None) is not None:
        return False
    return clip.attn_mask is not None and clip.text_pool_type == "argmax"


def vision_width(clip: Any) -> int:
    """Numbers of a token in the image tower; ClipError if it has no tokens."""
    return image_tower(clip).width


def image_blocks(clip: Any) -> Any:
    """The layers of the image tower; ClipError if it is not a vision transformer."""
    return image_tower(clip).blocks


def takes_prompts(clip: Any) -> bool:
    """Whether the image tower has layers of tokens, to which prompts can be added."""
    visual = clip.visual
    return isinstance(visual, VisionTransformer) or isinstance(
        getattr(visual, "trunk", None), Eva | TimmViT
    )


def is_vit(clip: Any) -> bool:
    """Whether the image tower is CLIP's own vision transformer, which is read at its class
    token.
    """
    visual = clip.visual
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
    )


def projection(clip: Any) -> str:
    """The name of the linear map that ends the image tower: that of a matrix (width, joint), or of
    a `nn.Linear`; empty if the tower ends otherwise.
    """
    visual = clip.visual
    if is_vit(clip):
        return "visual.proj"
    if isinstance(visual, ModifiedResNet):
        return "visual.attnpool.c_proj"
    if isinstance(visual, TimmModel):
        parts = dict(visual.head.named_children())
        last = list(parts)[-1] if parts else ""
        return f"visual.head.{last}" if isinstance(parts.get(last), nn.Linear) else ""
    return ""


def has_local_features(clip: Any) -> bool:
    """Whether `local` can be read from the image tower."""
    return takes_prompts(clip) or isinstance(clip.visual, ModifiedResNet)


def image_tower(clip: Any) -> "OpenClipTower | TimmTower":
    """The parts of a vision transformer.

    Raises:
        ClipError: the image tower is of another kind.
    """
    visual = clip.visual
    if not takes_prompts(clip):
        fault = f"its image tower is a {type(getattr(visual, 'trunk', visual)).__name__}"
        raise ClipError(fault, "choose a backbone with a vision transformer, such as ViT-B/16")
    return TimmTower(visual) if isinstance(visual, TimmModel) else OpenClipTower(visual)


def embed_image(visual: VisionTransformer, images: Tensor) -> Tensor:
    """CLS and patches with their positions, (batch, 1 + patches, width)."""
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
    return x + visual.positional_embedding.to(x.dtype)


class OpenClipTower:
    """open_clip's own vision transformer with any pooling.

    Attributes:
        blocks: its layers.
        width: numbers of a token.
        prefix: tokens ahead of the patches.
        grid: rows and columns of patches.
        norm: of the tokens that enter layer 0.
        patch: numbers of a patch of the image.
    """

    def __init__(self, visual: Any):
        self.visual = visual
        self.blocks = visual.transformer.resblocks
        self.width = visual.class_embedding.shape[0]
        self.prefix = 1
        self.grid = visual.grid_size
        self.norm: nn.Module = visual.ln_pre
        self.patch: int = visual.conv1.weight[0].numel()

    def embed(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, prefix + patches, width), before `norm`."""
        return embed_image(self.visual, images)

    def layer(self, number: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output of a layer for (batch, tokens, width); a mask is 0 where a token reads
        another, else -inf.
        """
        return self.blocks[number](x, attn_mask=mask)

    @property
    def pools_prompts(self) -> bool:
        """Whether an attention pools all tokens, which then reads the prompts, too."""
        return self.visual.attn_pool is not None

    def pool(self, x: Tensor) -> Tensor:
        """The last layer's output, (batch, tokens, width) -> (batch, joint width)."""
        return self.visual._pool(x)[0] @ self.visual.proj

    def normed(self, x: Tensor) -> Tensor:
        """Tokens after the layer norm that follows the last layer."""
        return self.visual.attn_pool.ln_k(x) if self.pools_prompts else self.visual.ln_post(x)


class TimmTower:
    """timm's `VisionTransformer` or `Eva` in open_clip's `TimmModel`; attributes are those of
    `OpenClipTower`.

    Rotary positions are those of the patches: the tokens ahead of them and the prompts get none.
    """

    def __init__(self, visual: TimmModel):
        self.visual = visual
        self.trunk = visual.trunk
        trunk: Any = visual.trunk
        self.blocks = trunk.blocks
        self.width = trunk.embed_dim
        self.prefix = trunk.num_prefix_tokens
        self.grid = trunk.patch_embed.grid_size
        self.norm = trunk.norm_pre
        self.patch = 3 * math.prod(visual.image_size) // math.prod(self.grid)
        self.rotary: Tensor | None = None

    def embed(self, images: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))
        if isinstance(x, tuple):
            x, self.rotary = x
        return x

    def layer(self, number: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not isinstance(self.trunk, Eva):
            return self.blocks[number](x, attn_mask=mask)
        rotary = self.rotary
        if rotary is not None:
            rotary = rotary[number] if getattr(self.trunk, "rope_mixed", False) else rotary
            added = x.shape[1] - self.prefix - rotary.shape[-2]
            none = rotary.new_zeros(*rotary.shape[:-2], added, rotary.shape[-1])
            none[..., rotary.shape[-1] // 2 :] = 1  # sine 0, cosine 1
            rotary = torch.cat([rotary, none], dim=-2)
        return self.blocks[number](x, rope=rotary, attn_mask=mask)

    @property
    def pools_prompts(self) -> bool:
        pool = self.trunk.attn_pool
        return pool is not None and getattr(pool, "pos_embed", None) is None

    def pool(self, x: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))

    def normed(self, x: Tensor) -> Tensor:
        return self.trunk.fc_norm(self.trunk.norm(x))
