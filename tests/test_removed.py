"""Options, settings and keys that were removed say what to do instead."""

import pytest
from dassl.config import get_cfg_default

from common.errors import UsageError, check_name
from common.removed import REMOVED
from common.start import Parser


@pytest.fixture(autouse=True)
def _removed(monkeypatch):
    words = {"--old": "use --new", "--rule old": "use new", "OLD": "use NEW"}
    monkeypatch.setattr("common.removed.REMOVED", words)


@pytest.mark.parametrize(
    ("words", "line"),
    {
        "--old 3": "error: unrecognized arguments: --old 3: --old was removed: use --new\n",
        "--rule old": "--rule old was removed: use new\n",
    }.items(),
)
def test_removed_option_is_answered_with_what_to_do_instead(words, line, capsys):
    parser = Parser()
    parser.add_argument("--new", "--old-time")
    parser.add_argument("--rule", choices=["new"])
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize("key", ("OLD", "TEST.OLD"))
def test_removed_setting_is_answered_with_what_to_do_instead(key):
    with pytest.raises(UsageError, match=f"unknown config key {key}; {key} was removed: use NEW"):
        get_cfg_default().merge_from_list([key, 1])


def test_removed_key_of_a_study_is_answered_with_what_to_do_instead():
    with pytest.raises(UsageError, match="there is no key 'OLD': OLD was removed: use NEW"):
        check_name("OLD", ["OLDER"], "key")


def test_table_of_removed_words_stays_small():
    assert len(" ".join((*REMOVED, *REMOVED.values()))) < 3000
