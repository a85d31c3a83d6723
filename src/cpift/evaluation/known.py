"""What is known of a model from earlier scoring: its answers, and the outcomes of rows; so that only what is new is computed.

Answers are kept by what they were generated from, whatever metric reads them, and judged anew each time. Outcomes of a
forward pass are kept by row and metric.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cpift.data.row_checks import Row
from cpift.evaluation.task import EvalTask, Score
from cpift.metrics.store import Store, digest
from cpift.train import accelerator

CODE = 1  # raise it when the same model and row would give another outcome
_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass
class Section:
    """Some values of one model under the same settings, by a digest of what they are of.

    Attributes:
        key: of the section in the store.
        values: a text or an outcome, and a number of tokens.
        store: where they are kept beyond this process.
    """

    key: str
    values: dict[str, tuple[str | float, int]]
    store: Store | None

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Places of the keys that have no value."""
        return [i for i, key in enumerate(keys) if key not in self.values]

    def outcomes(self, keys: Sequence[str], by_token: bool) -> list[tuple[str | float, int] | None]:
        """The outcomes under keys that all have a value.

        Args:
            keys: of rows.
            by_token: a row without a token has no outcome, None.
        """
        values = [self.values[key] for key in keys]
        return [value if value[1] or not by_token else None for value in values]

    def keep(self, values: Mapping[str, tuple[str | float, int]]) -> None:
        """Add values."""
        if values:
            self.values.update(values)
            if self.store is not None:
                self.store.put(self.key, self.values)


@dataclass
class Known:
    """What is known of one model. Without a store, of this process alone.

    Attributes:
        model: stands for its weights, configuration and tokenizer.
        settings: how it computes: chat template, attention.
        store: where values are kept.
    """

    model: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    store: Store | None = None
    _sections: dict[str, Section] = field(default_factory=dict)

    def texts(self, longest: int) -> Section:
        """Generated answers, by :func:`text_key`.

        Args:
            longest: tokens at which an answer is cut off.
        """
        return self.section({"texts": longest})

    def outcomes(self, task: EvalTask, max_length: int | None) -> Section:
        """Outcomes of forward passes, by :func:`row_key`.

        Args:
            task: its metric decides, and its settings; its rows do not.
            max_length: tokens at which the rows of a loss are cut.
        """
        limit = max_length if task.kind.cuts_rows else None
        identity = dict(task.kind.identity(task.asked))
        chosen = task.asked.chosen(task.kind.settings).identity()
        return self.section({"metric": task.metric, "max_length": limit, **identity, **chosen})

    def section(self, settings: Mapping[str, object]) -> Section:
        """What is known under these settings.

        Args:
            settings: beside those of the model, the device and the libraries.
        """
        key = digest([self.model, dict(self.settings), dict(settings), *_context()])
        if key not in self._sections:
            kept = None if self.store is None else self.store.get(key)
            self._sections[key] = Section(key, _checked(kept), self.store)
        return self._sections[key]


def score_of(task: EvalTask, outcomes: Sequence[tuple[str | float, int] | None], reused: int = 0) -> Score:
    """The score of a task's outcomes.

    Args:
        task: the task.
        outcomes: of each row the item and its tokens; None for a row that is left out.
        reused: rows that were known.
    """
    kept = [i for i, outcome in enumerate(outcomes) if outcome is not None]
    given = [outcome for outcome in outcomes if outcome is not None]
    items, tokens = [float(item) for item, _ in given], [count for _, count in given]
    weights = tokens if task.kind.by_tokens else [1] * len(items)
    mean = sum(item * weight for item, weight in zip(items, weights, strict=True)) / sum(weights) if items else math.nan
    rows = kept if len(kept) < len(outcomes) else None
    return Score(task.metric, mean, items, tokens, len(outcomes) - len(kept), rows=rows, reused=reused)


def _context() -> list[object]:
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return [CODE, accelerator.device().type, accelerator.scoring_precision(), *versions]


def _checked(kept: object) -> dict[str, tuple[str | float, int]]:
    """The values of a file; what does not look like one is left out."""
    pairs = kept.items() if isinstance(kept, dict) else []
    return {
        str(key): (value[0], value[1])
        for key, value in pairs
        if isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | float)
        and isinstance(value[1], int)
    }


def row_key(row: Row) -> str:
    """Stands for all of a row."""
    return digest(dict(row))


def text_key(ids: Sequence[int], rest: str, row: Row) -> str:
    """Stands for what an answer is generated from.

    Args:
        ids: tokens before the answer.
        rest: text that its first tokens must begin with.
        row: how the answer is found within what is generated depends on its kind.
    """
    chat = "messages" in row or not isinstance(row["prompt"], str)
    return digest([list(ids), rest, chat, row.get("chat_template_kwargs")])
