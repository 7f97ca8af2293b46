"""Shared by the methods: their base, the prompted model, settings, checkpoints, features and
teachers.
"""

from .build import require_vit
from .method import TEMPLATE, Method
from .prompted import PromptedCLIP, PromptLearner
