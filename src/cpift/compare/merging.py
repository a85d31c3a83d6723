"""Merging of the probes by mergekit, the field's own tool, in an environment of its own: its dependencies differ."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cpift.compare.work import Place, Work
from cpift.errors import CpiftError
from cpift.stages import Stage, base_settings

VARIABLE = "CPIFT_MERGEKIT"


def mergekit() -> str:
    """Path of ``mergekit-yaml``. Raises :class:`CpiftError` that says how to install it."""
    found = shutil.which(os.environ.get(VARIABLE, "mergekit-yaml"))
    if found is None:
        raise CpiftError(
            "soup, task_arithmetic, ties and dare_ties need mergekit, in an environment of its own: python -m venv mk; "
            f"mk/bin/pip install mergekit==0.1.5; export {VARIABLE}=$PWD/mk/bin/mergekit-yaml; or leave them out of --methods"
        )
    return found


def merge(work: Work, name: str, method: str, models: Mapping[str, Place], parameters: Mapping[str, float]) -> Place:
    """Merge fine-tuned models of the work's base in fp32; ``parameters`` are mergekit's, each model's alike."""
    seed, command = work.run.recipe.seed, mergekit()
    settings: dict[str, Any] = {"method": method, "parameters": dict(parameters), "seed": seed}
    if not work.base[0]:
        settings |= base_settings(work.run)
    needs = tuple(place[0] for place in (work.base, *models.values()) if place[0])

    def run(folders: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
        each = {"weight": 1.0, **parameters}
        recipe: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": str(place[1].absolute()), "parameters": each} for place in models.values()],
            "dtype": "float32",
            "parameters": {"normalize": method in ("linear", "ties")},
        }
        if method != "linear":
            recipe["base_model"] = str(work.base[1].absolute())
        target = folders[name]
        file = target / "mergekit.yaml"
        file.write_text(yaml.safe_dump(recipe))
        flags = ["--random-seed", str(seed), "--copy-tokenizer", "--no-write-model-card", "--quiet"]
        done = subprocess.run([command, str(file), str(target), *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CpiftError(f"{name}: mergekit failed: {' '.join(done.stderr.split())[-300:]}")
        for extra in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "generation_config.json"):
            if not (target / extra).exists() and (work.base[1] / extra).is_file():
                shutil.copyfile(work.base[1] / extra, target / extra)
        return {name: {}}

    stage = Stage(name, "fuse", f"mergekit {method}: {', '.join(models)}", settings, needs, run, writes_model=True)
    return work.make(stage)
