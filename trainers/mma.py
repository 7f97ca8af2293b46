from dataclasses import dataclass
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import BlockAdapter, adapt, adapt_input, image_blocks, text_blocks
from common.errors import UsageError

from .base import Method, require_vit
from .base.prompts import TemplatePrompts, text_width, vision_width
from .base.settings import MethodSettings


@dataclass(frozen=True)
class MMASettings(MethodSettings):
    """ADAPTER_START and ADAPTER_END are the first and the last adapted block of both towers,
    counted from 1; 0 is the input of the first block."""

    TEXT_CTX_INIT: str = "a photo of a"
    ADAPTER_START: int = 5
    ADAPTER_END: int = 12
    ADAPTER_DIM: int = 32
    ADAPTER_SCALE: int | float = 0.001
    ranges = dict.fromkeys(("ADAPTER_START", "ADAPTER_END"), (0, 100))
    ranges |= {"ADAPTER_DIM": (1, 16_384), "ADAPTER_SCALE": (1e-9, 1000)}

    def check(self):
        if self.ADAPTER_START > self.ADAPTER_END:
            raise UsageError(
                f"ADAPTER_START is {self.ADAPTER_START}", f"the last block is {self.ADAPTER_END}"
            )


class Bottleneck(nn.Module):
    """One tower's part of an adapter: width -> dim -> width."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.down = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
        self.up = nn.Linear(dim, width)


class MMAAdapter(BlockAdapter):
    """y = scale U relu(S relu(D x)) parallel to a block, x the output of its first layer norm (MMA,
    Sec. 3.2).

    D, S and U get 1 / scale times their gradient, as though y were not scaled; x gets its own
    gradient.
    """

    def __init__(self, bottleneck: Bottleneck, shared: nn.Module, scale: float):
        super().__init__()
        self.bottleneck = bottleneck
        self.shared = shared
        self.scale = scale

    def parallel(self, x: Tensor) -> Tensor:
        y: Tensor = self.bottleneck.up(self.shared(self.bottleneck.down(x)))
        return self.scale * y


class MMALearner(TemplatePrompts):
    """The adapters, by their names in published checkpoints: `text_adapter.<block>.down.0.weight`,
    ...
    """

    name = "adapter_learner"

    def __init__(self, clip: Any, classnames: list[str], settings: MMASettings):
        super().__init__("{}.", classnames, clip, f"{settings.TEXT_CTX_INIT.replace('_', ' ')} ")
        self.scale = settings.ADAPTER_SCALE
        dim = settings.ADAPTER_DIM
        blocks = [str(block) for block in range(settings.ADAPTER_START, settings.ADAPTER_END + 1)]
        widths = {"text_adapter": text_width(clip), "visual_adapter": vision_width(clip)}
        for name, width in widths.items():
            self.add_module(
                name, nn.ModuleDict({block: Bottleneck(width, dim) for block in blocks})
            )
        shared = {block: nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for block in blocks}
        self.shared_adapter = nn.ModuleDict(shared)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
            if name.split(".")[1] != "0":
                parameter.register_hook(lambda gradient, scale=self.scale: gradient / scale)

    def install(self, clip: Any) -> None:
        for name, tower in (("text_adapter", clip), ("visual_adapter", clip.visual)):
            for block, bottleneck in getattr(self, name).items():
                adapter = MMAAdapter(bottleneck, self.shared_adapter[block], self.scale)
                if block == "0":
                    adapt_input(tower, adapter.parallel)
                else:
                    adapt(tower, int(block) - 1, adapter)


@TRAINER_REGISTRY.register()
class MMA(Method):
    """Multi-Modal Adapter: small networks parallel to the upper blocks of both towers (Yang et al.,
    CVPR 2024).
    """

    Settings = MMASettings
    saved_as = "adapter_learner"
    saves_learner = True
    published_sections = ("TRAINER.MMADAPTER",)
    published = ("text_adapter.*", "visual_adapter.*", "shared_adapter.*")

    def build_prompts(self, clip, classnames):
        require_vit(clip, "MMA", self.cfg.MODEL.BACKBONE.NAME)
        blocks = min(len(text_blocks(clip)), len(image_blocks(clip)))
        last = self.settings.ADAPTER_END
        if blocks < last:
            raise UsageError(
                f"TRAINER.MMA.ADAPTER_END is {last}", f"this backbone has {blocks} blocks"
            )
        return MMALearner(clip, classnames, self.settings)
