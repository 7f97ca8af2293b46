"""How much a fine-tuned backbone differs from its base."""

import pytest
import torch
from safetensors.torch import save_file

from clip import fetch, load_backbone


@pytest.fixture
def tuned(tiny, tmp_path):
    """A file with changed weights in one block of the image tower and in the text projection."""
    state = load_backbone(str(tiny)).state_dict()
    block = "visual.transformer.resblocks.1."
    state |= {key: 1.1 * value for key, value in state.items() if key.startswith(block)}
    state["text_projection"] = 1.5 * state["text_projection"]
    save_file(
        {key: value.contiguous() for key, value in state.items()}, tmp_path / "tuned.safetensors"
    )
    return tmp_path / "tuned.safetensors"


def test_the_change_of_each_block_is_printed(tuned, tiny, command):
    done = command.works(fetch, "backbone", tuned, "--base", tiny)
    rows = [line.split() for line in done.printed.splitlines() if line.endswith("%")]
    changes = {row[0]: float(row[1]) for row in rows}
    changed = {"visual.transformer.resblocks.1": 10.0, "text_projection": 50.0}
    assert {key: value for key, value in changes.items() if value} == pytest.approx(changed)
    assert {"transformer.resblocks.3", "visual.transformer.resblocks.0", "visual"} <= set(changes)
    same = command(fetch, "backbone", tiny, "--base", tiny)
    assert f"its weights are those of {tiny}" in same.printed


def test_another_architecture_is_no_base(tuned, deep, command):
    error = command(fetch, "backbone", tuned, "--base", deep).error
    assert "has other tensors than" in error and "such as " in error and "--base" in error
    assert torch.is_tensor(load_backbone(str(tuned)).text_projection)
