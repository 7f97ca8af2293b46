"""What training shows: one live line on a terminal, the published lines in the log and where nobody watches."""

import re

import pytest
from dassl.utils import setup_logger
from tiny_project import make_trainer

LINE = re.compile(
    r"^epoch \[(\d+)/2\] batch \[(\d+)/3\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    r"loss \d+\.\d{4} \(\d+\.\d{4}\) .*lr \d\.\d{4}e-\d\d eta 0:00:\d\d$",
    re.MULTILINE,
)


def train(root, folder, *opts):
    with setup_logger(str(folder)):
        make_trainer(root, folder, "OPTIM.MAX_EPOCH", 2, *opts).train()
    return (folder / "log.txt").read_text()


@pytest.mark.parametrize(("freq", "batches"), [(2, "2"), (20, "3")])
def test_print_freq_is_obeyed_in_short_epochs_too(freq, batches, root, tmp_path, capsys):
    log = train(root, tmp_path, "TRAIN.PRINT_FREQ", freq)
    printed, errors = capsys.readouterr()
    assert LINE.findall(log) == LINE.findall(printed) == [(epoch, batch) for epoch in "12" for batch in batches]
    assert errors == ""  # no bars where nobody watches
