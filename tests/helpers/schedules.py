"""Random prompt schedules, and the check that two forms of a computation agree."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from clip import Edit

LAYERS = 3
EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.double).requires_grad_()


@st.composite
def edits(draw, width, present, sequences):
    """Edits before some of the first layers; none removes more prompts than are present.

    Some add vectors that differ by sequence, or mix them with those removed. Those before layer 0
    may enter after `ln_pre`.
    """
    schedule = []
    for layer in range(draw(st.integers(0, LAYERS))):
        remove = draw(st.integers(0, present))
        add = draw(st.integers(0, 4))
        own = [sequences] if draw(st.booleans()) else []
        after_norm = layer == 0 and draw(st.booleans())
        weight = draw(st.sampled_from([1.0, 0.3])) if remove == add else 1.0
        schedule.append(Edit(remove, leaf(*own, add, width) if add else None, after_norm, weight))
        present += add - remove
    return schedule


def added(schedule):
    return [edit.add for edit in schedule if edit.added]


def assert_same(got, expected, leaves):
    """Tensors of two forms, and the gradients of a random projection of them, agree to 1e-8 of
    their size.
    """
    assert [x.shape for x in got] == [x.shape for x in expected]
    directions = [torch.randn(x.shape, dtype=x.dtype) for x in expected]
    found = []
    for form in (got, expected):
        loss = sum((x * direction).sum() for x, direction in zip(form, directions, strict=True))
        # A vector removed immediately has a gradient, too
        loss = loss + sum((leaf * 0).sum() for leaf in leaves)
        found.append([*form, *(torch.autograd.grad(loss, leaves) if leaves else ())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 1e-8 * theirs.norm()
