"""What the commands read of their arguments."""

from pathlib import Path

import pytest
from dassl.engine import TRAINER_REGISTRY, TrainerX
from marks import one_line

from inference import embed, predict
from inference.description import configuration
from inference.serving import command as serving
from runs import calibrate_command as calibrate
from studies.variant import Variant


@pytest.mark.parametrize(
    ("command", "name", "options"),
    [
        (embed, "paths", ["--to", "new"]),
        (calibrate, "models", []),
        (serving, "models", []),
    ],
)
def test_options_may_stand_between_paths(command, name, options):
    """As in predict: the second path was an "unrecognized argument"."""
    args = command.parse(["one", "--backbone", "small", "two", *options])
    assert [str(path) for path in getattr(args, name)] == ["one", "two"]


@pytest.mark.parametrize("command", [predict, embed])
def test_an_image_that_is_missing_is_no_run(command):
    """The remedy was the output folder of a run."""
    to = ["--to", "new"] if command is embed else ["--classes", "robin", "wren"]
    with one_line("no model or image at photo.jpg: check the path"):
        command.main(["photo.jpg", "--backbone", "small", *to])


def test_a_trainer_of_dassl_alone_is_named(monkeypatch):
    """A user's own TrainerX was "no method", with a list of a hundred known ones and the advice to
    give --plugin, which had been given.
    """
    plain = type("PlainX", (TrainerX,), {})
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "PlainX", plain)
    words = "PlainX is a trainer of Dassl, not a method of this project", "train.py"
    with one_line("runs/1/config.yaml: ", *words):
        configuration("PlainX", Path("runs/1/config.yaml"))
    with one_line(*words):
        Variant("mine", "PlainX")
