"""Imports open_clip alone: timm, which it needs, imports wandb where that is installed, and this
takes seconds.
"""

import sys

if "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # type: ignore[assignment] # its import fails, which timm expects
    try:
        import open_clip  # noqa: F401
    finally:
        del sys.modules["wandb"]
