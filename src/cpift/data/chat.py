"""What a recipe sets of the chat: template, its variables, the end token. Read with the recipe, so no library is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cpift.errors import CpiftError
from cpift.typing import Tokenizer


@dataclass(frozen=True)
class ChatSettings:
    """What the recipe sets of the tokenizer: template, its variables for all rows, and the end token."""

    template: str | None = None
    kwargs: Mapping[str, object] = field(default_factory=dict)
    eos_token: str | None = None

    def apply(self, tokenizer: Tokenizer) -> None:
        """Set them on a tokenizer.

        Raises:
            CpiftError: the end token is not in the vocabulary.
        """
        if self.template is not None:
            tokenizer.chat_template = self.template
        if self.kwargs:
            tokenizer.cpift_template_kwargs = dict(self.kwargs)
        if self.eos_token is not None:
            if self.eos_token not in tokenizer.get_vocab():
                raise CpiftError(f"training.eos_token: {self.eos_token!r} is not in the tokenizer's vocabulary")
            tokenizer.eos_token = self.eos_token

    def identity(self) -> dict[str, object]:
        """For the keys of stages that depend on it; empty where nothing is set, so that old runs stay current."""
        settings: dict[str, object] = {}
        if self.template is not None:
            settings["chat_template"] = hashlib.sha256(self.template.encode()).hexdigest()[:32]
        if self.kwargs:
            settings["chat_template_kwargs"] = dict(self.kwargs)
        if self.eos_token is not None:
            settings["eos_token"] = self.eos_token
        return settings
