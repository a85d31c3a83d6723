"""Names for the types of libraries without type information, so that no module writes ``Any`` for them.

Import them at the top of any module: nothing heavy is loaded at run time, where each name is ``object``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Network: TypeAlias = PreTrainedModel
    """A causal language model in memory, from ``AutoModelForCausalLM``."""
    Tokenizer: TypeAlias = PreTrainedTokenizerBase
    """What ``AutoTokenizer.from_pretrained`` returns."""
    Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    """A numpy array of any shape and dtype."""
    Json: TypeAlias = str | int | float | bool | list["Json"] | dict[str, "Json"] | None
    """A value read from a JSON or YAML file, before it is checked."""
    Settings: TypeAlias = Mapping[str, Any]
    """Settings of a training: fields of TRL's SFTConfig, whose values are checked against the types that it declares."""
else:
    Settings = Network = Tokenizer = Array = Json = object
