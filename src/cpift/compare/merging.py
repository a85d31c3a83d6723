"""Merging of the probes by mergekit, the field's own tool, in an environment of its own: its dependencies differ."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cpift.checkpoint.align import align
from cpift.checkpoint.files import INDEX, SINGLE
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.writer import copy_companions, set_dtype
from cpift.compare.methods import METHODS
from cpift.errors import CpiftError
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Stage

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

VARIABLE = "CPIFT_MERGEKIT"


def mergekit() -> str:
    """Path of ``mergekit-yaml``. Raises :class:`CpiftError` that says how to install it."""
    found = shutil.which(os.environ.get(VARIABLE, "mergekit-yaml"))
    if found is None:
        names = ", ".join(method.name for method in METHODS.values() if method.merges)
        raise CpiftError(
            f"{names} need mergekit, in an environment of its own: python -m venv mk; "
            f"mk/bin/pip install mergekit==0.1.5; export {VARIABLE}=$PWD/mk/bin/mergekit-yaml; or leave them out of --methods"
        )
    return found


def merge(
    work: Work, name: str, method: str, models: Mapping[str, ModelRef], parameters: Mapping[str, float]
) -> ModelRef:
    """Merge fine-tuned models of the work's base in fp32; ``parameters`` are mergekit's, each model's alike."""
    seed, command, base = work.run.recipe.seed, mergekit(), work.base.path
    each, normalize = {"weight": 1.0, **parameters}, method in ("linear", "ties", "dare_ties")
    settings: dict[str, object] = {"method": method, "parameters": each, "normalize": normalize, "seed": seed}
    settings |= settings_of(work.base, "base")
    needs = tuple(stage for model in (work.base, *models.values()) for stage in model.needs)

    def config(base: Path, tuned: list[Path]) -> str:
        merged = [{"model": str(path.absolute()), "parameters": each} for path in tuned]
        start = {} if method == "linear" else {"base_model": str(base.absolute())}
        parts = {"models": merged, "dtype": "float32", "parameters": {"normalize": normalize}}
        return yaml.safe_dump({"merge_method": method, **start, **parts})

    def run(folders: Mapping[str, Path]) -> Facts:
        target, tuned = folders[name], [model.path for model in models.values()]
        (target / "mergekit.yaml").write_text(config(base, tuned))
        with tempfile.TemporaryDirectory() as scratch:
            shown = [_untabled(path, Path(scratch) / str(i)) for i, path in enumerate([base, *tuned])]
            file = Path(scratch) / "mergekit.yaml"
            file.write_text(config(shown[0], shown[1:]))
            flags = ["--random-seed", str(seed), "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
            done = subprocess.run(
                [command, str(file), str(target), *flags], capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise CpiftError(f"{name}: mergekit failed: {' '.join(done.stderr.split())[-300:]}")
        copy_companions(base, target)
        set_dtype(target / "config.json", {"F32"})
        align(open_checkpoint(base), open_checkpoint(target))  # refuses a model that lacks tensors
        return {name: {}}

    stage = Stage(name, "fuse", f"mergekit {method}: {', '.join(models)}", settings, needs, run, writes_model=True)
    return work.make(stage)


def _untabled(model: Path, folder: Path) -> Path:
    """The model under an architecture's name that mergekit does not know, so that it merges what tensors there are.

    Of those in its table it merges the tensors listed there, and drops others in silence: the biases of a Llama.
    """
    folder.mkdir()
    read = {file.name for file in open_checkpoint(model).files}
    for file in model.iterdir():
        stale = file.suffix == ".safetensors" and file.name not in read
        stale |= file.name == INDEX and read == {SINGLE}  # mergekit would read the shards of an older save
        if file.is_file() and file.name != "config.json" and not stale:
            (folder / file.name).symlink_to(file.absolute())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["UntabledForCausalLM"]}))
    return folder
