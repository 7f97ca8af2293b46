"""Models of one method that become one model: sums of what they have learned."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.errors import UsageError
from inference.classifier import PromptedClassifier
from trainers.base.projection import ProjectedCLIP
from trainers.base.prompted import PromptedCLIP
from trainers.cliplora import LoRALearner

State = dict[str, Tensor]
LOW_RANK = "w_lora_A", "w_lora_B"
DENSITY = 0.2  # of the entries that TIES keeps, as published
DROPPED = 0.9  # of the entries that DARE leaves out
LARGEST_RANK = 1024  # of CLIPLoRA
LARGEST_ALPHA = 10_000


def untrained(classifier: PromptedClassifier) -> State:
    """The tensors of a method before it has learned: for a method of weights, those of CLIP. The
    scale of the logits is left out: it is not a weight, and merged models have the mean.

    Raises:
        UsageError: its start is not CLIP itself, so that a change from it has no meaning.
    """
    method = classifier.start()
    model = method.model
    of_weights = model.adapted and model.folded() is not None
    if not (of_weights or isinstance(model, ProjectedCLIP)):
        fault = f"{classifier.method} does not start from CLIP's weights"
        raise UsageError(fault, "use --how mean or greedy")
    state = method.saved_module().state_dict()
    start = {key: tensor.detach().cpu().clone() for key, tensor in state.items()}
    for name in method.of_learned_classes:
        if not start[name].any():
            fault = f"{classifier.method} has a {name} that does not start from CLIP's weights"
            raise UsageError(fault, "use --how mean or greedy")
    return {key: tensor for key, tensor in start.items() if not is_scale(key, tensor)}


def is_scale(key: str, tensor: Tensor) -> bool:
    return tensor.dim() == 0 and key.endswith("scale")


def weighted(states: Iterable[tuple[float, State]], start: State | None = None) -> State:
    """The weighted sum of states, one in memory at a time; `start` has the rest of the weight,
    to 1; tensors that it lacks have the mean.
    """
    total: State = {}
    left = 1.0
    count = 0
    for weight, state in states:
        left -= weight
        count += 1
        for key, tensor in state.items():
            factor = weight if start is None or key in start else 1
            part = tensor.float() * factor if tensor.is_floating_point() else tensor
            total[key] = part if key not in total else added(total[key], part, key)
    if start is not None:
        for key in total.keys() - start.keys():
            total[key] = total[key] / count
        for key, tensor in start.items():
            if tensor.is_floating_point():
                total[key] += left * tensor.float()
    return total


def added(total: Tensor, part: Tensor, key: str) -> Tensor:
    """Their sum in place; whole numbers must be equal, except the steps of a BatchNorm."""
    if total.is_floating_point():
        return total.add_(part)
    if key.endswith("num_batches_tracked"):
        return torch.maximum(total, part)
    if not torch.equal(total, part):
        raise UsageError(f"the models differ in {key}", "merge models of the same settings")
    return total


def ties(states: Callable[[], Iterator[State]], start: State, density: float) -> State:
    """TIES (Yadav et al., 2023): of each model's change the largest entries, their elected sign,
    and the mean of those that have it.

    Args:
        states: gives the states of all models, once in each of two passes.
        density: the share of the entries of a model that stay.
    """
    signs, joined = elected(states, start, density)
    sums = {key: torch.zeros_like(tensor) for key, tensor in start.items()}
    counts = {key: torch.zeros_like(tensor, dtype=torch.int16) for key, tensor in start.items()}
    for state in states():
        for key, change in trimmed(state, start, density):
            agrees = change * signs[key] > 0
            sums[key] += change * agrees
            counts[key] += agrees
    for key, tensor in start.items():
        joined[key] = tensor
        if tensor.is_floating_point():
            joined[key] = tensor + sums[key] / counts[key].clamp(min=1)
    return joined


def elected(
    states: Callable[[], Iterator[State]], start: State, density: float
) -> tuple[State, State]:
    """The sign of the sum of all models' changes, for each entry; and the mean of what the start
    lacks.
    """
    totals = {key: torch.zeros_like(tensor) for key, tensor in start.items()}
    scales = []
    for state in states():
        scales.append({key: state[key] for key in state.keys() - start.keys()})
        for key, change in trimmed(state, start, density):
            totals[key] += change
    signs = {key: total.sign().to(torch.int8) for key, total in totals.items()}
    return signs, weighted((1 / len(scales), each) for each in scales)


def trimmed(state: State, start: State, density: float) -> Iterator[tuple[str, Tensor]]:
    """The change of each tensor, with its largest entries only: a share of those of the model."""
    changes = {
        key: state[key].float() - tensor
        for key, tensor in start.items()
        if tensor.is_floating_point()
    }
    sizes = torch.cat([change.abs().flatten() for change in changes.values()]).numpy()
    place = len(sizes) - max(1, round(density * len(sizes)))
    sizes.partition(place)
    least = float(sizes[place])
    del sizes
    for key, change in changes.items():
        yield key, change * (change.abs() >= least)


def dropped(state: State, start: State, share: float, generator: torch.Generator) -> State:
    """DARE (Yu et al., 2024): entries of the change go by chance, the others grow instead."""
    found = dict(state)
    for key, tensor in start.items():
        if not tensor.is_floating_point():
            continue
        stays = torch.rand(tensor.shape, generator=generator) >= share
        found[key] = tensor + (state[key].float() - tensor) * stays / (1 - share)
    return found


def low_rank_sum(
    members: Sequence[tuple[float, State, Mapping[str, Any]]],
) -> tuple[State, dict[str, Any]]:
    """The weighted sum of the products of low-rank maps: their factors one beside the other.

    Args:
        members: weight, state and settings of CLIPLoRA.

    Returns:
        the state, and R and ALPHA of it.
    """
    rank = sum(settings["R"] for _, _, settings in members)
    if rank > LARGEST_RANK:
        raise UsageError(
            f"the sum of the ranks is {rank}, and CLIPLoRA has at most {LARGEST_RANK}",
            "merge fewer models",
        )
    # The scale of the first, whatever the rank, if ALPHA may be so large
    scale = scale_of(members[0][2]) or 1.0
    if scale * rank**0.5 > LARGEST_ALPHA:
        scale = 1.0
    state = {}
    for key in members[0][1]:
        factors = [member[key] for _, member, _ in members]
        if key.endswith(LOW_RANK[1]):
            shares = [weight * scale_of(settings) / scale for weight, _, settings in members]
            factors = [share * factor for share, factor in zip(shares, factors, strict=True)]
        state[key] = torch.cat(factors, dim=int(key.endswith(LOW_RANK[1])))
    return state, {"R": rank, "ALPHA": scale * rank**0.5}


def scale_of(settings: Mapping[str, Any]) -> float:
    return settings["ALPHA"] / settings["R"] ** 0.5


def is_low_rank(model: PromptedCLIP) -> bool:
    return isinstance(model.prompt_learner, LoRALearner)
