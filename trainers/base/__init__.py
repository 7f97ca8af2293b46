"""What the methods share: the trainer, the prompted model, settings, checkpoints, features and teachers."""

from .build import require_vit
from .prompted import PromptedCLIP, PromptLearner
from .trainer import TEMPLATE, PromptTrainer

__all__ = ["TEMPLATE", "PromptLearner", "PromptTrainer", "PromptedCLIP", "require_vit"]
