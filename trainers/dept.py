from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .base import Method
from .base.checkpoints import of_other_classes, tensors_of
from .base.compat import optimizer_of
from .base.feature_method import FeatureMethod
from .base.head import FiLM
from .base.plugin import plugin
from .base.prompted import Output, PromptedCLIP, normalize
from .base.settings import Accepts, MethodSettings

FILMS = ("film_lp_img", "film_lp_text")
HEAD = "linear_probe_proj"
SECTIONS = ("TRAINER.LINEAR_PROBE", "TRAINER.FILM", "TRAINER.DEPT")  # in published YAML files
# Published
FILES = dict.fromkeys(("CoOp", "CoCoOp", "KgCoOp"), "PromptLearner") | {
    "MaPLe": "MultiModalPromptLearner"
}


@dataclass(frozen=True)
class DePTSettings(MethodSettings):
    """WEIGHT is that of the head's loss and, in a test of learned classes, of its logits. The
    others are the published ablations: TYPE similarity has no head, LINEAR_PROBE False no FiLM,
    TEST_TIME_FUSION False the head's logits alone.
    """

    WEIGHT: int | float = 0.7
    TYPE: Literal["linear", "similarity"] = "linear"
    TEST_TIME_FUSION: bool = True
    LINEAR_PROBE: bool = True
    ranges = {"WEIGHT": (0, 1)}


def head_logits(model: Any, output: Output, labels: Tensor | None = None) -> Tensor:
    """The logits of the head: of the images (batch, classes) or, with labels, of their texts and
    then of the images.
    """
    film_img, film_text = (getattr(model, name, nn.Identity()) for name in FILMS)
    image = film_img(output.tower.feature.float())
    text = output.text_feature.float()
    if model.dept.TYPE == "similarity":
        return model.logits(normalize(image), normalize(film_text(text)))
    if labels is None:
        return model.linear_probe_proj(image)
    own = (
        text[labels]
        if text.dim() == 2
        else text[torch.arange(len(labels), device=text.device), labels]
    )
    return model.linear_probe_proj(torch.cat([film_text(own), image]))


class DePTCLIP(PromptedCLIP):
    """A method's model, whose tests of learned classes mix in the logits of a linear head."""

    dept: DePTSettings

    def output(self, images, text_feature=None):
        output = super().output(images, text_feature)
        if self.training or not self.classes_learned:
            return output
        head = head_logits(self, output)
        weight = self.dept.WEIGHT if self.dept.TEST_TIME_FUSION else 1.0
        return replace(output, logits=torch.lerp(output.logits, head, weight))


class DePTMethod(Method):
    """A method, in front of its class, with a linear head for the learned classes."""

    def build_prompts(self, clip, classnames):
        learner = super().build_prompts(clip, classnames)
        width = clip.visual.output_dim
        modules = dict(learner.extra_modules)
        if self.settings.LINEAR_PROBE:
            modules |= {name: FiLM(width) for name in FILMS}
        if self.settings.TYPE == "linear":
            modules[HEAD] = nn.Linear(width, len(classnames))
        learner.extra_modules = modules
        return learner

    def after_build(self):
        super().after_build()
        self.model.dept = self.settings

    def saved_module(self):
        return self.model

    def before_load(self, checkpoint, path):
        bias = tensors_of(checkpoint).get(f"{HEAD}.bias")
        other = bias is not None and bias.shape != (len(self.class_names),)
        return super().before_load(of_other_classes(checkpoint) if other else checkpoint, path)

    def after_load(self, classes):
        super().after_load(classes)
        self.model.classes_learned = len(classes.checkpoint_labels) == len(self.class_names)

    def build_optimizer(self):
        options = self.cfg.OPTIM.clone()
        options.defrost()
        options.STAGED_LR = False  # this key would compare whole names of modules, and divide
        of_prompts = {"params": []}
        of_head = {"params": [], "lr": options.LR * self.published_value("OPTIM.LR_EXP")}
        for name, parameter in self.model.named_parameters():
            group = of_head if name.partition(".")[0] in (*FILMS, HEAD) else of_prompts
            group["params"].append(parameter)
        optimizer = optimizer_of(None, options, [of_prompts, of_head])
        return optimizer, self.build_schedule(optimizer)

    def loss(self, output, labels):
        loss, parts = super().loss(output, labels)
        ce = nn.functional.cross_entropy(output.logits, labels)
        logits = head_logits(self.model, output, labels)
        head = nn.functional.cross_entropy(logits, labels.repeat(len(logits) // len(labels)))
        parts = parts | {"loss_ce": ce, "loss_head": head}
        return loss + self.settings.WEIGHT * (head - ce), parts


@plugin("DePT")
def dept(base: type[Method]) -> type[Method] | None:
    """Decoupled Prompt Tuning over a method (Zhang et al., CVPR 2024)."""
    if not (base.learns and base.transfers and base.takes_plugins):
        return None
    if issubclass(base, FeatureMethod):
        return None
    name = base.__name__
    # Of names that are those in the learner alone
    inner = "prompt_learner." if base.checkpoint_has_learner_only else ""
    learned: tuple[str, ...] = ()
    if name in FILES:  # CoOp's names, too
        names = [key.removeprefix("prompt_learner.") for key in base.published]
        prompts = [f"prompt_learner.{key}" for key in names]
        learned = (*prompts, *(f"{module}.*" for module in (*FILMS, HEAD)))
    unused = [f"prompt_learner.{key}" for key in base.published_unused]
    by_class = [inner + key for key in base.tensors_by_class]

    @dataclass(frozen=True)
    class Both(DePTSettings, base.Settings): ...  # type: ignore[name-defined, misc]

    class OverMethod(DePTMethod, base):  # type: ignore[valid-type, misc]
        __doc__ = f"{name} with a linear head for the learned classes (DePT; CVPR 2024)."
        Settings = Both
        Model = type("Model", (DePTCLIP, base.Model), {})
        published_sections = (*base.published_sections, *SECTIONS)
        published = learned
        published_unused = (*unused, "meta_net.*")
        published_keys = {"OPTIM.LR_EXP": (6.5, Accepts(int | float, 0))}
        checkpoint_folder = FILES.get(name, base.checkpoint_folder)
        config_folder = f"DePT+{name}" if name in FILES else ""
        tensors_by_class = (*by_class, f"{HEAD}.*")

    return OverMethod
