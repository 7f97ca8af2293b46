"""What `make fuzz` has found: each input that failed, as small as it gets. It is refused in one line now."""

import pytest


@pytest.mark.parametrize("key", ["a\0b", "\ufeffOPTIM", "\x1b]0;title\x07", "\x9b2J"])
def test_error_shows_control_characters_as_escapes(key, launch, tmp_path):
    status, _, errors = launch("--trainer", "CoOp", "--output-dir", tmp_path / "out", key, "1")
    assert (status, len(errors)) == (2, 1) and errors[0].isprintable()
    assert repr(key)[1:-1] in errors[0]


def test_error_is_short_and_keeps_its_remedy(launch, tmp_path):
    name = "x" * 10_000
    status, _, errors = launch("--output-dir", tmp_path / "out", name)
    assert (status, len(errors)) == (2, 1) and len(errors[0]) < 2100
    assert errors[0].startswith("error: 'xxx") and errors[0].endswith(" are pairs of KEY VALUE")
