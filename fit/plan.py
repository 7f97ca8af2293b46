"""Which candidates a fit has time for. fit.json keeps it, so that a fit that was killed ends as if
it were not.
"""

import json
import math
from copy import copy
from pathlib import Path
from typing import Any

from common.files import write_text


class Plan:
    """The decisions of a fit about its candidates.

    Args:
        file: the record of the fit so far, which gets the decisions.
        record: its content; that of a fit that was killed has decisions already.
        deadline: of `time.monotonic`, for the heads.
        end: the same, after which nothing is measured that the model does not need.

    Attributes:
        backbone: whose candidates it is about; empty if there is only one.
        ms: milliseconds of an image, by backbone, if they were measured.
    """

    backbone = ""

    def __init__(
        self,
        file: Path | None = None,
        record: dict[str, Any] | None = None,
        deadline: float = math.inf,
        end: float = math.inf,
    ):
        self.file = file
        self.record = record or {}
        self.deadline = deadline
        self.end = end
        written = self.record.get("plan")
        known: dict[str, Any] = written if isinstance(written, dict) else {}
        self.trained: dict[str, str] | None = values_of(known.get("trained"), str)
        self.too_long: dict[str, str] = values_of(known.get("too_long"), str) or {}
        self.ms: dict[str, float] = values_of(known.get("ms"), float) or {}

    def of(self, backbone: str) -> "Plan":
        """The same plan, for the candidates of one of several backbones."""
        plan = copy(self)
        plan.backbone = backbone
        return plan

    def key(self, candidate: str) -> str:
        """The name of a candidate among those of all backbones."""
        return f"{self.backbone} {candidate}" if self.backbone else candidate

    def write(
        self, trained: dict[str, str] | None = None, too_long: dict[str, str] | None = None
    ) -> None:
        """Take decisions.

        Args:
            trained: for each trained method why it is left out; empty if it is tried.
            too_long: for each head that takes too long, by its `key`, how long.
        """
        self.trained = self.trained if trained is None else trained
        self.too_long |= too_long or {}
        if not self.file:
            return
        plan: dict[str, Any] = {"too_long": self.too_long}
        if self.trained is not None:
            plan["trained"] = self.trained
        if self.ms:
            plan["ms"] = self.ms
        write_text(self.file, json.dumps(self.record | {"plan": plan}) + "\n")


def values_of(content: Any, kind: type) -> dict[str, Any] | None:
    """The content of a file of anyone, if it is values of a kind by names."""
    if isinstance(content, dict) and all(isinstance(value, kind) for value in content.values()):
        return content
    return None
