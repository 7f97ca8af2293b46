"""Learned copies of tensors of the frozen CLIP, which take the place of the originals in a private
copy of it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from clip import CLIP, is_vit
from common.errors import UsageError

from .prompts import TemplatePrompts
from .trainer import require_vit


def require_clip(clip: CLIP, method: str, backbone: str) -> None:
    """Raise UsageError for a backbone whose towers do not have the tensors of CLIP's own
    transformers.
    """
    require_vit(clip, method, backbone)
    if not (is_vit(clip) and hasattr(clip, "transformer")):
        fault = f"{method} needs both towers to be those of CLIP, and {backbone} has others"
        raise UsageError(
            fault, "choose a backbone such as ViT-B/16, or a method of texts or features"
        )


class Substitute(nn.Module):
    """What takes the place of a frozen tensor, in the type of that tensor: a parametrization of
    PyTorch.

    Args:
        learned: another tensor of the same shape, or a function from the frozen tensor to it. Its
            learned tensors are those of the prompt learner.
    """

    def __init__(self, learned: Tensor | Callable[[Tensor], Tensor]):
        super().__init__()
        self.__dict__["learned"] = learned  # not registered here: the CLIP has no learned tensors

    def forward(self, frozen: Tensor) -> Tensor:
        learned = self.__dict__["learned"]
        value: Tensor = learned if isinstance(learned, Tensor) else learned(frozen)
        return value.to(frozen.dtype)


def substitute(clip: CLIP, name: str, learned: Tensor | Callable[[Tensor], Tensor]) -> None:
    """Let a private copy of the backbone compute with `learned` instead of its tensor `name` (see
    `Substitute`).
    """
    module, _, tensor = name.rpartition(".")
    parametrize.register_parametrization(
        clip.get_submodule(module), tensor, Substitute(learned), unsafe=True
    )


def register(module: nn.Module, name: str, learned: nn.Parameter | nn.Module) -> None:
    """Register a parameter or a module in a module, by a name with dots."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    setattr(module, last, learned)


class CopyLearner(TemplatePrompts):
    """Learned copies of some tensors of the CLIP, in fp32, and one sentence for the class names.

    Args:
        template: the sentence, with {} for the class name.
        copies: the names of the tensors in the CLIP, which are OpenAI's, each with the name of its
            copy in checkpoints.
    """

    def __init__(self, template: str, classnames: list[str], clip: CLIP, copies: Mapping[str, str]):
        super().__init__(template, classnames, clip)
        self.copies = dict(copies)
        for name, saved in copies.items():
            register(self, saved, nn.Parameter(clip.get_parameter(name).detach().float().clone()))

    def install(self, clip: CLIP) -> None:
        for name, saved in self.copies.items():
            substitute(clip, name, self.get_parameter(saved))


# Frozen tensor -> where its values are, and U, S, V of each of its maps
_decomposed = WeakTensorKeyDictionary()


def decomposed(weight: Tensor, maps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """U, S and V of the maps in a frozen tensor, one above the other; they are computed once in a
    process.
    """
    place = weight.data_ptr(), weight.device
    known, parts = _decomposed.get(weight, (None, []))
    if known != place:
        parts = [
            torch.linalg.svd(part.float(), full_matrices=False)
            for part in weight.detach().chunk(maps)
        ]
        _decomposed[weight] = place, parts
    return parts


class Spectrum(nn.Module):
    """A linear map W = U diag(S) V of the frozen CLIP, (outputs, inputs), of which S learns.

    Args:
        decomposition: U, S and V.
        share: of the singular values, the largest ones, that are kept; their number is a multiple
            of 4.
        learned: whether S learns.
    """

    left: Tensor
    right: Tensor

    def __init__(self, decomposition: tuple[Tensor, Tensor, Tensor], share: float, learned: bool):
        super().__init__()
        left, values, right = decomposition
        rank = int(len(values) * share) // 4 * 4
        self.register_buffer("left", left[:, :rank], persistent=False)
        self.register_buffer("right", right[:rank], persistent=False)
        values = values[None, :rank].clone()
        self.vector_S = nn.Parameter(values) if learned else nn.Buffer(values, persistent=False)

    def forward(self) -> Tensor:
        return (self.left * self.vector_S) @ self.right


def recomposed(spectra: list[Spectrum | None], frozen: Tensor) -> Tensor:
    """A frozen tensor of maps, one above the other, with those that have a spectrum computed from
    it.
    """
    parts = zip(frozen.chunk(len(spectra)), spectra, strict=True)
    return torch.cat([part if spectrum is None else spectrum() for part, spectrum in parts])
