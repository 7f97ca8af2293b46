"""Context vectors that are tuned for each test image alone, on the views of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import TextPrompts
from common.errors import UsageError

from .base.checkpoints import tensors_of
from .base.prompts import ContextPrompts, Position, sentence_context, vectors_ahead
from .base.settings import MethodSettings
from .base.test_time import State, ViewsMethod, ViewsSettings, entropy_of_mean, most_confident

WEIGHT_DECAY = 0.01  # of AdamW
WHOLE = "prompt_learner."  # starts the names in a checkpoint of a whole model
CONTEXT = {f"{WHOLE}{name}" for name in ("ctx", "token_prefix", "token_suffix")}
LOSS_SCALE = 1024.0  # so that gradients in fp16 do not vanish; a power of two changes nothing else


@dataclass(frozen=True)
class TPTSettings(ViewsSettings):
    """The context starts from the words of CTX_INIT, with one vector for each, or else from N_CTX
    given vectors. A [CLS] among the words is the place of the class name, instead of
    CLASS_TOKEN_POSITION.

    SELECTION is the share of views in the loss, the most confident ones. STEPS and LR are those of
    AdamW.
    """

    N_CTX: int = 4
    CTX_INIT: str = "a photo of a"
    CLASS_TOKEN_POSITION: Position = "end"
    SELECTION: float = 0.1
    STEPS: int = 1
    LR: float = 0.005
    ranges = {"SELECTION": (0, 1), "STEPS": (1, 1000), "LR": (0, 100)}

    def check(self):
        super().check()
        if self.CTX_INIT and not self.CTX_INIT.replace("[CLS]", "").strip(" _"):
            raise UsageError(
                f"CTX_INIT is {self.CTX_INIT!r}", "give words, or nothing if vectors are given"
            )
        if self.CTX_INIT.count("[CLS]") > 1:
            raise UsageError(f"CTX_INIT is {self.CTX_INIT!r}", "give [CLS] once")

    @property
    def position(self) -> str | int:
        """Of the class name: the number of words ahead of [CLS], or CLASS_TOKEN_POSITION."""
        ahead, cls, _ = self.CTX_INIT.replace("_", " ").partition("[CLS]")
        return len(ahead.split()) if cls else self.CLASS_TOKEN_POSITION


@TRAINER_REGISTRY.register()
class TPT(ViewsMethod):
    """Test-time prompt tuning: the views of an image should agree (Shu et al., NeurIPS 2022).

    Each image begins with the same vectors and an empty AdamW. The text tower alone has a backward
    pass.
    """

    Settings: ClassVar[type[MethodSettings]] = TPTSettings
    checkpoint_has_learner_only = True
    reads_sentences = False

    def objective(self, logits: Tensor, text: Tensor) -> Tensor:
        """The loss of an image: the entropy of the mean over views of their probabilities, in nats.

        Args:
            logits: (views, classes), of the most confident views.
            text: (classes, joint), of unit length.
        """
        return entropy_of_mean(logits)

    def build_prompts(self, clip, classnames):
        s = self.settings
        words, ctx = sentence_context(clip, s.N_CTX, s.CTX_INIT.replace("[CLS]", " "))
        start = nn.Buffer(ctx.detach())  # no training changes it
        if not s.CTX_INIT:
            start.fill_(math.nan)  # until a run or MODEL.INIT_WEIGHTS gives vectors
        return ContextPrompts(clip, classnames, words, start, s.position)

    def predict_loader(self, loader, folder):
        if not self.model.prompt_learner.ctx.isfinite().all():
            key = f"TRAINER.{self.section()}.CTX_INIT"
            raise UsageError(
                f"{key} is empty, and no context is given",
                "set it, or give --eval-only --model-dir RUN",
            )
        return super().predict_loader(loader, folder)

    @property
    def texts(self) -> Tensor:
        return self.model.text_features(torch.empty(0))

    def logits_of_features(self, features: Tensor, state: State) -> Tensor:
        s = self.settings
        model = self.model
        prompts: Any = model.prompt_learner
        ctx = prompts.ctx.clone().requires_grad_()
        optimizer = torch.optim.AdamW([ctx], s.LR, weight_decay=WEIGHT_DECAY)
        kept: Any = None

        def text() -> Tensor:
            with self.autocast():
                text = model.towers.encode_text(
                    model.clip, TextPrompts(prompts.ids, ctx, prompts.slots)
                )
            return model.of_text(text)

        for _ in range(s.STEPS):
            with torch.enable_grad():
                now = text()
                if kept is None:
                    kept = features[
                        most_confident(model.logits(features, now.detach()), s.SELECTION)
                    ]
                loss = LOSS_SCALE * self.objective(model.logits(kept, now), now)
                ctx.grad = torch.autograd.grad(loss, ctx)[0] / LOSS_SCALE
            if ctx.grad.isfinite().all():  # an overflow in fp16 leaves out the step
                optimizer.step()
        with torch.no_grad():
            return model.logits(features[:1], text())[0]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Start from the context vectors of a run of CoOp or a similar method. A run without
        training has none.
        """
        folder = Path(directory) if directory else None
        trained = folder and any(folder.glob("*/model*.pth.tar*"))
        if folder and not trained and (folder / "config.yaml").is_file():
            print(f"{folder} has no checkpoint: the context starts as it does there")
        elif folder:
            self.checkpoints.read(directory, epoch)

    def before_load(self, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """The start: a checkpoint that has one set of context vectors for all classes, and nothing
        else. Raises UsageError if it has other prompts, or they do not fit the settings."""
        written = checkpoint.get("metadata") or {}
        prompts: Any = self.model.prompt_learner
        own = self.settings.position
        n_ctx = len(prompts.ctx)
        position = (written.get("settings") or {}).get("CLASS_TOKEN_POSITION", own)
        if vectors_ahead(position, n_ctx) != vectors_ahead(own, n_ctx):
            remedy = (
                f"set TRAINER.{self.section()}.CLASS_TOKEN_POSITION {position}, without [CLS] "
                "in CTX_INIT"
            )
            raise UsageError(f"{path} was learned with class names at the {position}", remedy, path)
        # Published checkpoints have none
        method = {"method": type(self).__name__} if "method" in written else {}
        state = tensors_of(checkpoint)
        if {key for key in state if key.startswith(WHOLE)} <= CONTEXT:
            state = {key.removeprefix(WHOLE): tensor for key, tensor in state.items()}
        return {**checkpoint, "metadata": {**written, **method}, "state_dict": state}
