"""The extras that a plain installation leaves out, and the one line where a package of theirs is missing."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from cpift.errors import CpiftError

# Extra to packages by their names for import, as pyproject.toml has them. A package of several belongs to the first.
EXTRAS = {
    "train": ("accelerate", "datasets", "fsspec", "pyarrow", "safetensors", "scipy", "transformers", "trl"),
    "hub": ("huggingface_hub",),
    "adapters": ("peft",),
    "eval": ("lm_eval", "codebleu", "rouge_score", "sacrebleu", "tree_sitter"),
    "math": ("math_verify",),
    "generate": ("reasoning_gym",),
    "gguf": ("gguf",),
    "ray": ("ray",),
}


class MissingPackage(CpiftError, ImportError):
    """A package that an extra brings is not installed, or too old."""


def install(extra: str) -> str:
    """The command that installs an extra; in the quotes that every shell knows."""
    return f'pip install "cpift[{extra}]"'


def remedy(error: ImportError) -> str | None:
    """One line for an import that failed: the package, and what to do. None where no extra has that package."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    try:
        missing = find_spec(package) is None
    except ValueError:  # a stand-in for a module, without a specification
        missing = False
    if missing:
        return f"needs the package {package}, which is not installed; {install(extra)}"
    return f"needs another version of {package} than {_version(package)}; {install(extra)} ({error})"


def load(name: str) -> ModuleType:
    """Import a module that may belong to an extra.

    Args:
        name: of the module.

    Raises:
        MissingPackage: it, or what it imports, is not installed or has another version; names the extra.
        ImportError: of a module that no extra has.
    """
    try:
        return import_module(name)
    except ImportError as error:
        line = None if isinstance(error, MissingPackage) else remedy(error)
        if line is None:
            raise
        raise MissingPackage(line) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "the one that is here"
