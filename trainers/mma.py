from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import BlockAdapter, adapt, adapt_input, image_blocks, text_blocks
from common.errors import UsageError

from .base import Method, require_vit
from .base.prompted import PromptLearner
from .base.prompts import TemplatePrompts, text_width, vision_width
from .base.settings import MethodSettings


@dataclass(frozen=True)
class AdapterSettings(MethodSettings):
    """ADAPTER_START and ADAPTER_END are the first and the last adapted block of both towers,
    counted from 1; 0 is the input of the first block."""

    ADAPTER_START: int = 5
    ADAPTER_END: int = 12
    ADAPTER_DIM: int = 32
    ranges = dict.fromkeys(("ADAPTER_START", "ADAPTER_END"), (0, 100))
    ranges |= {"ADAPTER_DIM": (1, 16_384)}

    def check(self):
        if self.ADAPTER_START > self.ADAPTER_END:
            raise UsageError(
                f"ADAPTER_START is {self.ADAPTER_START}", f"the last block is {self.ADAPTER_END}"
            )


@dataclass(frozen=True)
class MMASettings(AdapterSettings):
    TEXT_CTX_INIT: str = "a photo of a"
    ADAPTER_SCALE: int | float = 0.001
    ranges = {"ADAPTER_SCALE": (1e-9, 1000)}


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


class AdapterLearner(PromptLearner):
    """The adapters, by their names in published checkpoints: `text_adapter.<block>.down.0.weight`,
    ...
    """

    name = "adapter_learner"
    at_input: tuple[str, ...] = ("text_adapter", "visual_adapter")  # where block 0 has an effect

    def adapter(self, bottleneck: Bottleneck, shared: nn.Module) -> Any:
        """The adapter of a block, of these parts."""
        raise NotImplementedError

    def install(self, clip: Any) -> None:
        for name, tower in (("text_adapter", clip), ("visual_adapter", clip.visual)):
            parts: Any = self.get_submodule(name)
            for block, bottleneck in parts.items():
                adapter = self.adapter(bottleneck, self.get_submodule(f"shared_adapter.{block}"))
                if block != "0":
                    adapt(tower, int(block) - 1, adapter)
                elif name in self.at_input:
                    adapt_input(tower, adapter.parallel)


def parts_of_adapters(clip: Any, settings: AdapterSettings) -> Iterator[tuple[str, nn.ModuleDict]]:
    """The parts of the adapters, by block, with their names; each is made when it is asked for."""
    dim = settings.ADAPTER_DIM
    blocks = [str(block) for block in range(settings.ADAPTER_START, settings.ADAPTER_END + 1)]
    widths = {"text_adapter": text_width(clip), "visual_adapter": vision_width(clip)}
    for name, width in widths.items():
        yield name, nn.ModuleDict({block: Bottleneck(width, dim) for block in blocks})
    shared = {block: nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for block in blocks}
    yield "shared_adapter", nn.ModuleDict(shared)


def start_weight(weight: nn.Parameter) -> None:
    """The start of all weights of adapters."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


class MMALearner(AdapterLearner, TemplatePrompts):
    """MMA's adapters, and one sentence for the class names."""

    def __init__(self, clip: Any, classnames: list[str], settings: MMASettings):
        super().__init__("{}.", classnames, clip, f"{settings.TEXT_CTX_INIT.replace('_', ' ')} ")
        self.scale = settings.ADAPTER_SCALE
        for name, parts in parts_of_adapters(clip, settings):
            self.add_module(name, parts)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                start_weight(parameter)
            if name.split(".")[1] != "0":
                parameter.register_hook(lambda gradient, scale=self.scale: gradient / scale)

    def adapter(self, bottleneck, shared):
        return MMAAdapter(bottleneck, shared, self.scale)


class AdapterMethod(Method):
    """A method of adapters in both towers; its `Settings` are `AdapterSettings`."""

    checkpoint_folder = "adapter_learner"
    checkpoint_has_learner_only = True
    published = ("text_adapter.*", "visual_adapter.*", "shared_adapter.*")

    def check_blocks(self, clip: Any) -> None:
        """Raise UsageError for a backbone without a block of ADAPTER_END."""
        require_vit(clip, type(self).__name__, self.cfg.MODEL.BACKBONE.NAME)
        blocks = min(len(text_blocks(clip)), len(image_blocks(clip)))
        last = self.settings.ADAPTER_END
        if blocks < last:
            fault = f"TRAINER.{self.section()}.ADAPTER_END is {last}"
            raise UsageError(fault, f"this backbone has {blocks} blocks")


@TRAINER_REGISTRY.register()
class MMA(AdapterMethod):
    """Multi-Modal Adapter: small networks parallel to the upper blocks of both towers (Yang et al.,
    CVPR 2024).
    """

    Settings = MMASettings
    published_sections = ("TRAINER.MMADAPTER",)

    def build_prompts(self, clip, classnames):
        self.check_blocks(clip)
        return MMALearner(clip, classnames, self.settings)
