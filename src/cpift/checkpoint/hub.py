"""Where a model lies: a local folder or file, or a repository of the Hugging Face hub, which is fetched."""

from __future__ import annotations

import os
from pathlib import Path

from cpift.checkpoint.library import library
from cpift.errors import CpiftError, nearest
from cpift.extras import MissingPackage

# One copy of the weights: the files that transformers loads. Other formats (consolidated.safetensors, pickle, GGUF,
# ONNX) and variants stay where they are.
_WEIGHTS = [
    "model.safetensors",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
    "patches/*.safetensors",
    "cpift_regions/*.safetensors",
]
_BESIDE = ["*.json", "*.jinja", "*.model", "*.txt", "README.md"]
_NEVER = ["onnx/*", "original/*", "openvino/*", "checkpoint-*/*", "runs/*", "trainer_state.json"]


def locate(model: str, revision: str | None = None, trust_remote_code: bool = False, weights: bool = True) -> Path:
    """The local folder (or GGUF file) of a model; a hub repository is fetched, one copy of its safetensors weights.

    Args:
        model: a folder, a GGUF or safetensors file, a hub id, or ``id@revision``.
        revision: branch, tag or commit, where it does not stand behind the id.
        trust_remote_code: fetch the repository's Python files too?
        weights: fetch the weights? Without them, the configuration and the tokenizer alone.

    Raises:
        CpiftError: no such folder, file or repository; one that asks for a login.
    """
    if "\0" in model:
        raise CpiftError(f"model: {model!r} is no path")
    path = Path(model)
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix in (".gguf", ".safetensors")):
        if revision:  # (os.path takes names of any length)
            raise CpiftError(
                f"revision: {revision} is of a model from the hub, and {model} is here already; leave it out"
            )
        return path
    name, _, own = model.partition("@")
    if os.path.exists(path) or path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CpiftError(f"model: {model} is neither a folder, a GGUF file nor a hub id")
    if own and revision and own != revision:
        raise CpiftError(f"model: {model} and revision: {revision} name two revisions; keep one of them")
    return _fetch(name, own or revision, trust_remote_code, weights)


def checkpoint_place(model: str, trust_remote_code: bool = False, key: str = "model", weights: bool = True) -> Path:
    """As :func:`locate`, for commands that read checkpoints: what does not look like a hub id is a path.

    ``key``: what messages call it.
    """
    path = Path(model)
    if os.path.lexists(path) or model.count("/") != 1 or model.startswith((".", "~")) or path.suffix in _FILES:
        return path
    try:
        return locate(model, None, trust_remote_code, weights)
    except CpiftError as error:
        raise CpiftError(key + str(error).removeprefix("model")) from error


_FILES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".json")


def _beside(name: str) -> str:
    """The folder that a mistyped path may mean; empty where nothing beside it has such a name."""
    place = Path(name)
    try:
        found = [folder.name for folder in place.parent.iterdir() if folder.is_dir()]
    except OSError:  # no such place, or not to be read
        return ""
    near = nearest(place.name, found)
    return f" (did you mean {place.parent / near}?)" if near else ""


def _fetch(name: str, revision: str | None, trust_remote_code: bool, weights: bool) -> Path:
    wanted = [*(_WEIGHTS if weights else []), *_BESIDE, *(["*.py"] if trust_remote_code else [])]
    at = f" at revision {revision}" if revision else ""
    try:
        place = Path(
            library("huggingface_hub").snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns=_NEVER
            )
        )
    except MissingPackage as error:
        raise CpiftError(f"model: {name} is no local folder, and a download from the hub {error}") from error
    except Exception as error:  # offline, no such repository, gated: the library has many kinds
        kind = type(error).__name__
        if kind == "GatedRepoError":
            raise CpiftError(
                f"model: {name} is gated: accept its terms at https://huggingface.co/{name}, then log in with hf auth "
                "login, or set HF_TOKEN"
            ) from error
        if kind == "RepositoryNotFoundError":
            raise CpiftError(
                f"model: {name} is no local folder{_beside(name)}, and no repository of the hub; for a private one log in "
                "with hf auth login, or set HF_TOKEN"
            ) from error
        if kind == "RevisionNotFoundError":
            raise CpiftError(f"model: {name} has no revision {revision}; give a branch, a tag or a commit") from error
        raise CpiftError(
            f"model: {name}{at} is no local folder{_beside(name)} and cannot be fetched; without a network give the folder of a copy, made "
            f"elsewhere by: hf download {name} --local-dir DIR ({' '.join(str(error).split())})"
        ) from error
    if weights and not any(place.glob("*.safetensors")) and not (place / "adapter_config.json").is_file():
        raise CpiftError(
            f"model: {name}{at} has no safetensors weights under the names that transformers loads; pickle and GGUF are "
            "not fetched. Take another revision or repository, or fetch and convert it"
        )
    return place
