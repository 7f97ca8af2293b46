"""docs/configuration.md is what docs/reference.py writes, and has every setting."""

import re
import runpy

from dassl.config import get_cfg_default

import trainers
from common.start import ROOT
from experiments.configuration import extend_cfg, flatten

PAGE = (ROOT / "docs/configuration.md").read_text()


def test_page_is_up_to_date():
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    assert reference["page"]() == PAGE, "run `python docs/reference.py`"


def test_every_key_is_there():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    common = {key for key in flatten(cfg) if not re.match(r"TRAINER\.(?!NAME$)|BY_DATASET", key)}
    assert len(common) > 90 and {key for key in common if f"`{key}`" not in PAGE} == set()
    for name, method in trainers.methods().items():
        plugin, _, over = name.partition("+")
        text = "".join(PAGE.partition(f"### {title}\n")[2].partition("\n### ")[0] for title in (plugin, over or plugin))
        assert {key for key in method.Settings.schema() if f"| `{key}` | " not in text} == set(), name
