"""The forward and backward pass of training steps as one CUDA graph (MODEL.CUDA_GRAPHS)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # steps before the one that is captured, which fill caches and choose kernels

Step = Callable[[Tensor, Tensor], dict[str, Tensor]]


class StepGraph:
    """A step whose kernels are launched together, from the fourth batch on. Smaller batches are computed as usual.

    Besides its batch, the step may only read tensors that keep their memory: a graph keeps the values of Python numbers
    as they were.

    Args:
        step: takes images (batch, 3, H, W) and labels (batch,), leaves gradients in the parameters and returns tensors.
        model: a `PromptedCLIP`, whose parameters learn.
    """

    def __init__(self, step: Step, model: Any):
        self.step, self.model, self.parameters = step, model, list(model.parameters())
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.graph is None:
            self.steps += 1
            if self.steps <= WARM_UP:
                return self.on_own_stream(images, labels)
            self.graph = self.capture(images, labels)
        if images.shape != self.images.shape:
            return self.step(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return {name: value.clone() for name, value in self.logged.items()}  # the next step overwrites them

    def on_own_stream(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A step as usual on another stream, as torch asks for before a capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            logged = self.step(images, labels)
        torch.cuda.current_stream().wait_stream(self.stream)
        return logged

    def capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self.images, self.labels, graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logged = {name: value.detach() for name, value in self.step(self.images, self.labels).items()}
        self.text = self.model._text  # the model forgets this text with an epoch, and the graph reads its memory
        self.gradients = [parameter.grad for parameter in self.parameters]
        return graph
