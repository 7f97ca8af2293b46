"""Shared by the methods: their base, the prompted model, settings, checkpoints, features and
teachers.
"""

from .method import TEMPLATE, Method
from .prompted import PromptedCLIP, PromptLearner
from .trainer import require_vit
