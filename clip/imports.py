"""Imports open_clip alone: timm, which it needs, imports wandb where that is installed, and this
takes seconds.
"""

import sys
from importlib import import_module

if "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # type: ignore[assignment] # its import fails, which timm expects
    try:
        import_module("open_clip")
    finally:
        del sys.modules["wandb"]
