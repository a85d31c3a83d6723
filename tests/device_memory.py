"""What tests of a device's memory share: errors of a lack of it, a stage of one function, a tiny training's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from cpift.data.encoding import encode
from cpift.evaluation.guard import Guarded, score_guard
from cpift.files import manifest
from cpift.recipe.recipe import Recipe
from cpift.runs.make import make
from cpift.runs.stage import Run, Stage

SETTINGS = {"per_device_train_batch_size": 4, "bf16": False, "max_length": 64}
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


def rows() -> list[Any]:
    words = tiny.tokenizer()
    return [encode(row, words) for row in tiny.rows("first", 16, 0)]


def neutral_score(model: Path) -> Any:
    return score_guard(model, [Guarded("neutral text", None)])["scores"]["neutral text"]


def raising(error: Exception) -> Any:
    """A function that only raises, each time a new error: one that is kept keeps what it came by."""

    def function(*given: Any, **named: Any) -> Any:
        raise type(error)(*error.args)

    return function


def stage(action: Any) -> Stage:
    return Stage("09-test/a", "probe", "test", {}, (), action)


def made(tmp_path: Path, action: Any) -> dict[str, Any]:
    """Facts of a stage that does this."""
    run = Run(Recipe.model_validate(tiny.recipe(tmp_path)), tmp_path / "out")
    make(run, [stage(action)])
    found = manifest.read(run.folder("09-test/a"))
    assert found is not None
    return found.facts
