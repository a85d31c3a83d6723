"""The outcome of each field in which a base and a tuned checkpoint differ, as the table of docs/checkpoints.md.

``python tests/compatibility_table.py`` writes it there anew; a test holds the two equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from cpift.checkpoint.compatibility import compare_configs

DOCS = Path(__file__).parent.parent / "docs" / "checkpoints.md"
BEGIN, END = "<!-- fields: made by tests/compatibility_table.py -->", "<!-- end of fields -->"
_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
CONFIGS: dict[str, Any] = {
    "Llama": LlamaConfig(rope_parameters=_ROPE),
    "Qwen2": Qwen2Config(use_sliding_window=True, max_window_layers=2, num_hidden_layers=4),
    "Gemma 3": Gemma3TextConfig(num_hidden_layers=4),
    "GPT-NeoX": GPTNeoXConfig(),
    "Qwen3-MoE": Qwen3MoeConfig(num_hidden_layers=4),
}
_ORDER = ("same", "warn", "refuse")


def fields(config: dict[str, Any], start: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field, and the configuration with another value there."""
    for key, value in config.items():
        if isinstance(value, dict) and value and key not in ("id2label", "label2id"):
            for name, inner in fields(value, f"{start}{key}."):
                yield name, {**config, key: inner}
        else:
            yield start + key, {**config, key: another(value)}


def another(value: Any) -> Any:
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2 + 1
    if isinstance(value, str):
        return {"silu": "gelu", "gelu": "silu", "llama": "mistral"}.get(value, value + "_2")
    if isinstance(value, list):
        return [*value[1:], "another"] if value else ["another"]
    return {"0": "another"} if isinstance(value, dict) else 1


def outcomes(config: dict[str, Any]) -> dict[str, str]:
    """Field to what a difference there leads to, "same" included."""
    made = {}
    for field, other in fields(config):
        found = [difference.outcome for difference in compare_configs(config, other)]
        made[field] = max(found, key=_ORDER.index, default="same")
    made["a field not known here"] = max(
        (d.outcome for d in compare_configs(config, {**config, "not_known_here": 1})), key=_ORDER.index, default="same"
    )
    return made


def table() -> str:
    """Markdown: a line a field, a column an architecture."""
    columns = {name: outcomes(config.to_dict()) for name, config in CONFIGS.items()}
    names = sorted({re.sub(r"\.\d+$", "", field) for column in columns.values() for field in column})
    lines = ["| field of config.json | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        cells = [column.get(name, "–") for column in columns.values()]
        lines.append(
            f"| `{name}` | " + " | ".join(cells) + " |"
            if " " not in name
            else f"| {name} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the table into the docs."""
    text = DOCS.read_text(encoding="utf-8")
    start, rest = text.split(BEGIN)
    DOCS.write_text(f"{start}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
