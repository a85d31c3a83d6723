"""What stands for a checkpoint in the key of a stage: a hash of its weights, configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.files import manifest
from cpift.runs.stage import ModelRef

identities: dict[Path, tuple[Any, str]] = {}  # what checkpoint_identity knows: state of the files, identity

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def checkpoint_identity(path: Path) -> str:
    """Fingerprint of weights, configuration and tokenizer of a checkpoint; read once in a process.

    Args:
        path: the checkpoint's folder.
    """
    checkpoint = open_checkpoint(path)
    files = checkpoint.files
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    if path not in identities or identities[path][0] != state:
        parts = [fingerprint(checkpoint)]
        for name in _FILES:
            parts.append(manifest.file_hash(path / name) if (path / name).is_file() else "")
        identities[path] = state, "-".join(part[:16] for part in parts)
    return identities[path][1]


def settings_of(model: ModelRef, name: str) -> dict[str, str]:
    """What stands for a model in the settings of a stage that reads it.

    Args:
        model: the model.
        name: its key in the settings.

    Returns:
        Nothing for a model that a stage has made: that stage's digest counts as a need.
    """
    return {} if model.stage else {name: checkpoint_identity(model.path)}
