"""Settings of a metric: ``metric_settings`` of a task. A metric with settings has a subclass of this beside it."""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class MetricSettings(BaseModel):
    """No settings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change a score, such as a limit on time; they are no part of a stage's key."""

    def identity(self) -> dict[str, str]:
        """What decides about a score, for the key of a stage; nothing for a metric without settings."""
        values = self.model_dump(mode="json", exclude=set(self.without_effect))
        return {"metric_settings": json.dumps(values, sort_keys=True)} if values else {}
