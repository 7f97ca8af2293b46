"""Shared by the methods: the trainer, the prompted model, settings, checkpoints, features and
teachers.
"""

from .build import require_vit
from .method import TEMPLATE
from .prompted import PromptedCLIP, PromptLearner
from .trainer import PromptTrainer

__all__ = ["TEMPLATE", "PromptLearner", "PromptTrainer", "PromptedCLIP", "require_vit"]
