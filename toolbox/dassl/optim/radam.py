"""The published module of RAdam; it is torch's."""

from torch.optim import RAdam

__all__ = ["RAdam"]
