"""What training shows: one live line on a terminal, the published lines in the log and where nobody watches."""

import io
import re
import sys

import pytest
from dassl.utils import setup_logger
from dassl.utils.logger import print_detail, print_on_terminal
from tiny_project import make_trainer

LINE = re.compile(
    r"^epoch \[(\d+)/2\] batch \[(\d+)/3\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    r"loss \d+\.\d{4} \(\d+\.\d{4}\) .*lr \d\.\d{4}e-\d\d eta 0:00:\d\d$",
    re.MULTILINE,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(root, folder, *opts):
    with setup_logger(str(folder)):
        make_trainer(root, folder, "OPTIM.MAX_EPOCH", 2, *opts).train()
    return (folder / "log.txt").read_text()


def test_terminal_has_one_live_line_and_a_summary_of_each_epoch(root, tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    print_detail("without a log")
    print_on_terminal("for a person")
    log = train(root, tmp_path, "TRAIN.PRINT_FREQ", 1)
    shown = screen.getvalue()
    assert LINE.findall(log) == [(epoch, batch) for epoch in "12" for batch in "123"]
    assert not LINE.search(shown) and "without a log" not in shown and shown.startswith("for a person\n")
    kept = [line for line in re.split(r"[\r\n]+", shown) if re.match(r"epoch \d/2: loss", line)]
    assert [line[:10] for line in kept] == ["epoch 1/2:", "epoch 2/2:"]
    assert all(re.search(r"loss \S+ .*lr \S+, 0:00:\d\d, left 0:00:\d\d$", line) for line in kept)
    assert "epoch 1/2: " in shown and "it/s" in shown and "test set" in shown
    assert "epoch 1/2: " not in log and "\r" not in log
    assert shown.count("prompt_learner") == 1 and f"Checkpoints: {tmp_path}/prompt_learner\n" in shown
    assert log.count("Checkpoint saved to ") == 2 and "Checkpoints:" not in log


@pytest.mark.parametrize(("freq", "batches"), [(2, "2"), (20, "3")])
def test_print_freq_is_obeyed_in_short_epochs_too(freq, batches, root, tmp_path, capsys):
    log = train(root, tmp_path, "TRAIN.PRINT_FREQ", freq)
    printed, errors = capsys.readouterr()
    assert LINE.findall(log) == LINE.findall(printed) == [(epoch, batch) for epoch in "12" for batch in batches]
    assert errors == ""  # no bars where nobody watches
