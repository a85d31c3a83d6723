"""A lack of memory: one line that names the stage and what to change, never tried again as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engine_jobs
import pytest
import tiny
import torch
from device_memory import CPU, CUDA, SETTINGS, made, neutral_score, raising, rows
from engine_jobs import job
from tiny_run import call

from cpift.distributed.engine import JobError, make_engine
from cpift.errors import CpiftError, OutOfMemory, is_out_of_memory
from cpift.evaluation import forced
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.train import accelerator
from cpift.train import fine_tune as training
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("accelerator") / "base")


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError(CPU), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OutOfMemory("t"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("the tokenizer is out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_a_lack_of_memory_is_known_from_other_errors(error: Exception, yes: bool) -> None:
    """Also where it is only the cause of what was raised."""
    assert is_out_of_memory(error) == yes
    outer = KeyError("x")
    outer.__cause__ = error
    assert is_out_of_memory(outer) == yes


def test_the_machines_own_memory_is_known_from_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that blames the card for a lack of main memory would send its reader the wrong way."""
    monkeypatch.setattr(accelerator, "describe", lambda: "Card (80.0 GiB)")
    assert accelerator.lacking(torch.OutOfMemoryError(CUDA)) == "Card (80.0 GiB)"
    assert accelerator.lacking(RuntimeError(CPU)) == "the processor"
    assert accelerator.lacking(MemoryError()) == "the processor"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "training.per_device_train_batch_size 2 with gradient_accumulation_steps 2, the same rows a step"),
        ({"gradient_accumulation_steps": 3}, "size 2 with gradient_accumulation_steps 6, the same rows a step"),
        ({"per_device_train_batch_size": 1}, "set a training.max_length below"),
        ({"activation_checkpointing": True}, "or a training.optim that keeps less"),
    ],
)
def test_a_training_without_memory_is_one_line_with_what_to_change(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], remedy: str
) -> None:
    """Batch, longest row, card; no remedy that is taken already."""
    monkeypatch.setattr(accelerator, "describe", lambda: "Card (80.0 GiB)")
    monkeypatch.setattr(training._Trainer, "training_step", raising(torch.OutOfMemoryError(CUDA)))
    data = rows()
    with pytest.raises(OutOfMemory) as told:
        fine_tune(base, data, tmp_path / "out", TrainSpec({**SETTINGS, **settings}, 2, 0))
    text, longest = str(told.value), max(len(row.input_ids) for row in data)
    each = settings.get("per_device_train_batch_size", 4)
    assert text.startswith(f"out of memory on Card (80.0 GiB) with batches of {each} rows, the longest of {longest} ")
    assert remedy in text
    assert ("activation_checkpointing" in text) == ("activation_checkpointing" not in settings)
    assert "\n" not in text


def test_a_run_without_memory_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the stage named once, no traceback; training first, then scoring."""
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(tiny.recipe(tmp_path, ("reverse", "upper"), probe={"steps": 1})))
    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "training_step", raising(RuntimeError(CPU)))
        code, _, errors = call(capsys, "run", file, "--out", tmp_path / "out")
    said = " ".join(errors.split())
    assert code == 2
    assert "01-probe/reverse (reverse): out of memory on the processor with batches of 4 rows" in said
    assert "Traceback" not in said
    monkeypatch.setattr(forced, "padded", raising(torch.OutOfMemoryError(CUDA)))
    code, _, errors = call(capsys, "run", file, "--out", tmp_path / "out")
    said = " ".join(errors.split())
    assert code == 2
    assert "07-evaluate/base/reverse: reverse: out of memory on the processor in scoring a batch of 1 row" in said
    assert "Traceback" not in said


def test_a_job_without_memory_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt; the line is the job's."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(accelerator.__file__).parents[2]}")
    engine = make_engine("local", 2)
    assert engine is not None
    said: list[str] = []
    with engine, pytest.raises(JobError, match=r"no_memory: out of memory \(CUDA out of memory"):
        list(engine.run([job(tmp_path, engine_jobs.no_memory, tmp_path / "mark")], said.append))
    assert (tmp_path / "mark").read_text() == "x"
    assert not any("tried again" in text for text in said)


def test_any_stage_without_memory_is_named(tmp_path: Path) -> None:
    """Also one that neither trains nor scores."""
    with pytest.raises(CpiftError, match=r"^09-test/a: out of memory on the processor \(.*DefaultCPUAllocator"):
        made(tmp_path, raising(RuntimeError(CPU)))


def test_a_model_too_large_for_the_device_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any batch."""
    monkeypatch.setattr(torch.nn.Module, "to", raising(torch.OutOfMemoryError(CUDA)))
    for score in (
        lambda: evaluate(base, {"t": EvalTask(tiny.rows("first", 1, 0), "loss")}),
        lambda: neutral_score(base),
    ):
        with pytest.raises(OutOfMemory, match=r"the model's weights alone take 0\.0 GiB"):
            score()
