from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from clip import CLIP, projection
from common.errors import UsageError

from .base.feature_method import FeatureSettings, FeatureSpec, FittedMethod, Support
from .base.features import CachedOutput
from .base.projection import Projection, UnprojectedCLIP, last_map
from .base.steps import shots_of
from .base.teacher import SEVEN

# Learning rates and weights of the variant with validation, in its order
GRID = list(
    product([10.0**-power for power in range(2, 9)], [10.0, 1.0, 0.1, 0.01, 0.001, 0.0001, 0.0])
)


class LinearAdapter(Projection):
    """A linear map `linear2` behind the projection, which stays as it is."""

    def __init__(self, clip: CLIP):
        super().__init__(clip, learns=False)
        self.linear2 = nn.Linear(clip.visual.output_dim, clip.visual.output_dim, bias=False)
        nn.init.eye_(self.linear2.weight)
        self.remember()

    def project(self, x: Tensor) -> Tensor:
        return self.linear2(super().project(x))


class ProjectedCLIP(UnprojectedCLIP):
    """A CLIP with a learned projection."""

    prompt_learner: Projection

    def folded(self) -> dict[str, Tensor]:
        learner = self.prompt_learner
        state = self.frozen.state_dict()
        name = projection(self.frozen)
        *rows, bias = learner.project(
            torch.eye(learner.width + 1, learner.width, device=learner.start.device)
        )
        weight = torch.stack(rows) - bias  # (width, joint)
        if not isinstance(last_map(self.frozen), nn.Linear):
            return state | {name: weight}
        folded = {f"{name}.weight": weight.T, f"{name}.bias": bias}
        return state | {key: tensor for key, tensor in folded.items() if key in state}


@dataclass(frozen=True)
class ProLIPSettings(FeatureSettings):
    """Each of STEPS steps has one view of every image. LAMBDA weighs the squared change of what is
    learned: a number, 1/N or 1/N^2 for N images of each class, or validation: these images choose
    it and OPTIM.LR. With PREC fp16 it learns in fp16 on every device, Adam's moments too, as in the
    published code.
    """

    AUGMENT_EPOCH: int = 300
    STEPS: int = 300
    LAMBDA: int | float | Literal["1/N", "1/N^2", "validation"] = "1/N"
    ranges = {"AUGMENT_EPOCH": (0, 1000), "STEPS": (1, 1_000_000), "LAMBDA": (0, 1_000_000)}

    def weight(self, shots: int) -> float:
        """LAMBDA for this many images of each class."""
        powers = {"1/N": 1, "1/N^2": 2, "validation": 1}
        return float(shots) ** -powers[self.LAMBDA] if isinstance(self.LAMBDA, str) else self.LAMBDA


@TRAINER_REGISTRY.register()
class ProLIP(FittedMethod):
    """The projection of the image tower, held near its start (Fahes et al., 2024)."""

    Settings = ProLIPSettings
    Model = ProjectedCLIP
    transfers = True
    schedule_steps = True
    checkpoint_folder = "prolip"
    spec = FeatureSpec(SEVEN, chosen={"LAMBDA": "1/N"}, trials=len(GRID))
    kind_of_head: ClassVar[type[Projection]] = Projection
    tried: float | None = None  # the LAMBDA of the grid, while one is chosen

    def build_prompts(self, clip, classnames):
        if not projection(clip):
            fault = f"{type(self).__name__} needs an image tower that ends in a linear projection"
            raise UsageError(
                f"{fault}, and {self.cfg.MODEL.BACKBONE.NAME} has another",
                "choose another backbone",
            )
        return self.kind_of_head(clip)

    def start(self, support):
        if self.settings.PREC == "fp16":
            print("PREC fp16: the head learns in fp16, on every device")
            self.head.half()

    def finish(self):
        self.head.float()

    def build_schedule(self, optimizer):
        return CosineAnnealingLR(optimizer, self.settings.STEPS)

    @property
    def chosen_keys(self):
        return (
            [f"TRAINER.{self.section()}.LAMBDA", "OPTIM.LR"]
            if self.settings.LAMBDA == "validation"
            else []
        )

    def loss(self, output, labels):
        """Cross-entropy, and LAMBDA times the squared change."""
        parts = {
            "loss_ce": F.cross_entropy(output.logits, labels),
            "loss_squares": self.head.squares(),
        }
        weight = self.settings.weight(shots_of(self)) if self.tried is None else self.tried
        return parts["loss_ce"] + weight * parts["loss_squares"], parts

    def fit(self, support: Support) -> None:
        """Learn with the given values or, each time from the start, with all of GRID: the first of
        the best stays.
        """
        if self.chosen_keys:
            self.learn_best(support)
            return
        logged = self.learn(support)
        print(", ".join(f"{name} {float(value):.4f}" for name, value in logged.items()))

    def learn_best(self, support: Support) -> None:
        """Learn with each pair of GRID."""
        training = self.training
        optimiser = deepcopy(training.optim.state_dict())
        schedule = deepcopy(training.sched.state_dict())
        start = deepcopy(self.head.state_dict())
        best = -1
        for rate, self.tried in GRID:
            self.head.load_state_dict(start)
            training.optim.load_state_dict(optimiser)
            training.sched.load_state_dict(schedule | {"base_lrs": [rate]})
            training.optim.param_groups[0]["lr"] = rate
            self.learn(support)
            correct = self.correct()
            if correct > best:
                best = correct
                values = f"learning rate {rate:g}, LAMBDA {self.tried:g}"
                learned = deepcopy(self.head.state_dict())
        self.head.load_state_dict(learned)
        print(f"{best} of {len(self.val_images)} validation images with {values}")

    @torch.enable_grad()
    def learn(self, support: Support) -> dict[str, float | Tensor]:
        """STEPS steps with one view of all images each: 1, 2, ..., 0; what the last one logs."""
        for step in range(1, self.settings.STEPS + 1):
            view = CachedOutput(support.views[step % len(support.views)])
            logged = self.training_step({"img": view, "label": support.labels})
        return logged


@TRAINER_REGISTRY.register()
class RLA(ProLIP):
    """ProLIP's regularised linear adapter on projected features."""

    checkpoint_folder = "rla"
    kind_of_head = LinearAdapter
