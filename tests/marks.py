import pytest


def thorough_but(quick, values):
    """Parameters `values`; `make test` runs the quick ones, `make test-all` all of them."""
    assert all(value in values for value in quick), f"{quick} are not all among {values}"
    return [pytest.param(value, marks=() if value in quick else pytest.mark.thorough) for value in values]
