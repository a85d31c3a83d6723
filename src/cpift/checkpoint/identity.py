"""What stands for a checkpoint: a hash of its weights, configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import xxhash

from cpift.checkpoint.adapter_config import FILE as CONFIG
from cpift.checkpoint.adapter_config import WEIGHTS
from cpift.checkpoint.companions import TEMPLATE, TEMPLATE_FOLDERS, TOKENIZER
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.files import manifest

identities: dict[
    Path, tuple[list[tuple[str, int, int]], str]
] = {}  # what checkpoint_identity knows: state of the files, identity

_FIRST = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)  # in the order of the identity
_OTHERS = (
    *sorted({*TOKENIZER, *TEMPLATE} - {*_FIRST}),
    "*.tiktoken",
    "tokenization_*.py",
    *(f"{folder}/**/*" for folder in TEMPLATE_FOLDERS),
)


def checkpoint_identity(path: Path, base: Path | None = None) -> str:
    """Fingerprint of weights, configuration and tokenizer of a checkpoint; read once in a process.

    Args:
        path: the checkpoint's folder. Of an adapter its base's files count as well.
        base: what an adapter is applied to; by default the base that it names.
    """
    checkpoint = open_checkpoint(path, None if base is None else open_checkpoint(base))
    first = [path / name for name in _FIRST]
    beneath = [folder for folder in checkpoint.folders if folder.resolve() != path.resolve()]
    others = _matching(path, _OTHERS) | {
        f"{number}/{name}": file
        for number, folder in enumerate(beneath)
        for name, file in _matching(folder, (*_FIRST, *_OTHERS)).items()
    }
    files = [*checkpoint.files, *(file for file in first if file.is_file()), *others.values()]
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    if path not in identities or identities[path][0] != state:
        parts = [fingerprint(checkpoint), *(manifest.file_hash(file) if file.is_file() else "" for file in first)]
        if others:
            hashes = {name: manifest.file_hash(file) for name, file in others.items()}
            parts.append(xxhash.xxh3_128_hexdigest(json.dumps(hashes, sort_keys=True).encode()))
        identities[path] = state, "-".join(part[:16] for part in parts)
    return identities[path][1]


def adapter_identity(folder: Path) -> str:
    """What stands for an adapter alone: a hash of its weights, configuration, tokenizer and settings of generation."""
    files = _matching(folder, (CONFIG, WEIGHTS, *_FIRST, *_OTHERS, "generation_config.json"))
    hashes = {name: manifest.file_hash(file) for name, file in files.items()}
    return xxhash.xxh3_128_hexdigest(json.dumps(hashes, sort_keys=True).encode())


def content_identity(path: Path, base: Path | None = None) -> str:
    """As :func:`checkpoint_identity`, with the settings of generation that lie beside the weights."""
    checkpoint = open_checkpoint(path, None if base is None else open_checkpoint(base))
    files = [file for folder in checkpoint.folders if (file := folder / "generation_config.json").is_file()]
    return "-".join([checkpoint_identity(path, base), *(manifest.file_hash(file)[:16] for file in files)])


def _matching(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Files of a folder that match, by their name there."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}
