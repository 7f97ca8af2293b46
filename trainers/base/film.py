"""Feature-wise linear modulation (FiLM; Perez et al., 2018)."""

import torch
from torch import Tensor, nn


class FiLM(nn.Module):
    """A scale and a shift of each feature channel."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.float() + self.bias
