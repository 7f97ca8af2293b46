"""Shared by the methods: their base, the prompted model, settings, checkpoints, features and
teachers.
"""

import sys

from . import feature_method, prompts, teacher, test_time, trainer, two_towers
from .build import require_vit
from .method import TEMPLATE, Method
from .prompted import PromptedCLIP, PromptLearner

# Method files outside of this project may have these names of before: a method was a trainer
FORMER = {
    "PromptTrainer": trainer,
    "FeatureTrainer": feature_method,
    "FittedTrainer": feature_method,
    "ContextTrainer": prompts,
    "TaughtTrainer": teacher,
    "ViewsTrainer": test_time,
}
for name, module in FORMER.items():
    named = name.removeprefix("Prompt").replace("Trainer", "Method")
    setattr(module, name, getattr(module, named))
# They were in `prompts`
for name in ("TowerPrompts", "IndependentPrompts", "TwoTowerSettings", "TwoTowerMethod"):
    setattr(prompts, name, getattr(two_towers, name))
prompts.TwoTowerTrainer = prompts.TwoTowerMethod  # type: ignore[attr-defined]
sys.modules[f"{__name__}.feature_trainer"] = feature_method
PromptTrainer = Method
