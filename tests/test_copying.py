"""Copies of modules are those of `deepcopy`."""

from collections import defaultdict
from copy import deepcopy
from threading import Lock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from clip.copying import copied


class Counted(nn.Linear):
    """It counts by names, and shares a dictionary with its twin."""

    def __init__(self, shared):
        super().__init__(2, 2)
        self.counts = defaultdict(int)
        self.shared = shared


class Locked(nn.Linear):
    """A lock cannot be copied."""

    def __init__(self):
        super().__init__(2, 2)
        self.lock = Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.lock = Lock()


@pytest.fixture
def module():
    shared = {}
    tied = nn.Linear(2, 2)
    made = nn.Sequential(tied, nn.Linear(2, 2), Counted(shared), Counted(shared), Locked())
    made.append(parametrizations.weight_norm(nn.Linear(2, 2)))
    made.append(nn.MultiheadAttention(2, 1))
    made[1].weight = tied.weight
    made[1].hook = made[1].register_forward_hook(lambda *seen: seen[2] + 1)
    made.first = [tied]
    made.register_buffer("unsaved", torch.ones(2), persistent=False)
    made.register_parameter("none", None)
    made[0].bias.requires_grad_(False)
    made[5].eval().double()
    made[0].compile(backend="eager")
    return made


@pytest.mark.parametrize("copy", [deepcopy, lambda module: copied(module, {})])
def test_a_copy_has_what_the_module_has_and_shares_nothing(module, copy):
    twin = copy(module)
    assert list(vars(twin)) == list(vars(module))
    tensors = [*module.parameters(), *module.buffers()]
    twins = [*twin.parameters(), *twin.buffers()]
    for tensor, other in zip(tensors, twins, strict=True):
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype
        assert tensor.requires_grad == other.requires_grad
        assert tensor.data_ptr() != other.data_ptr()
    assert [part.training for part in twin.modules()] == [
        part.training for part in module.modules()
    ]
    assert list(twin.state_dict()) == list(module.state_dict())
    assert twin[1].weight is twin[0].weight and twin.first[0] is twin[0]
    assert twin[2].shared is twin[3].shared is not module[2].shared
    twin[2].counts["images"] += 1
    assert not module[2].counts and twin[4].lock is not module[4].lock
    assert twin[0]._compiled_call_impl is None
    x = torch.ones(1, 2)
    assert torch.equal(twin[:4](x), module[:4](x))
    assert torch.equal(twin[5](x.double()), module[5](x.double()))
    twin[1].hook.remove()
    assert not twin[1]._forward_hooks and module[1]._forward_hooks


def test_what_is_known_stands_for_itself(module):
    known = {id(tensor): tensor for tensor in module.parameters()}
    twin = copied(module, known)
    assert [*map(id, twin.parameters())] == [*map(id, module.parameters())]
    twin[0] = nn.Identity()
    assert isinstance(module[0], nn.Linear) and known[id(module)] is twin
