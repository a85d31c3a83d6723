"""auto_batch: smaller batches where memory runs out, the same rows a step, no try that repeats another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from tiny_run import call

from cpift.data.encoding import Encoded, encode
from cpift.errors import CpiftError, OutOfMemory
from cpift.train import fine_tune as training
from cpift.train.auto_batch import halved
from cpift.train.config import check_training
from cpift.train.fine_tune import fine_tune
from cpift.train.settings import deciding
from cpift.train.spec import TrainSpec

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2}
AUTO = {**SETTINGS, "auto_batch": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("auto_batch") / "base")


def rows() -> list[Encoded]:
    return [encode(row, tiny.tokenizer()) for row in tiny.rows("first", 10, 0)]


def card(monkeypatch: pytest.MonkeyPatch, fits: int, after: int = 0) -> list[int]:
    """A card for passes of this many rows, from a step on; returns the rows of each pass that was tried."""
    tried: list[int] = []
    step = training._Trainer.training_step

    def limited(trainer: Any, model: Any, inputs: Any, *given: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > fits and trainer.state.global_step >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(trainer, model, inputs, *given)

    monkeypatch.setattr(training._Trainer, "training_step", limited)
    return tried


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(folder / "model.safetensors")


def test_batches_are_halved_until_they_fit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of a recipe with that batch, bit for bit, and those of the whole batch to rounding."""
    asked = {**SETTINGS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    fine_tune(base, rows(), tmp_path / "asked", TrainSpec(asked, 4, 0))
    fine_tune(base, rows(), tmp_path / "whole", TrainSpec(SETTINGS, 4, 0))
    said: list[str] = []
    tried = card(monkeypatch, fits=1)
    done = fine_tune(base, rows(), tmp_path / "auto", TrainSpec(AUTO, 4, 0), smaller=said.append)
    assert tried[:2] == [4, 2]
    assert set(tried[2:]) == {1}
    assert (done.device_batch, done.accumulation, done.steps) == (1, 4, 4)
    assert [text.partition("auto_batch goes to ")[2][:47] for text in said] == [
        "batches of 2 with gradient_accumulation_steps 2",
        "batches of 1 with gradient_accumulation_steps 4",
    ]
    auto, same, whole = (weights(tmp_path / name) for name in ("auto", "asked", "whole"))
    assert all(np.array_equal(auto[name], same[name]) for name in same)
    assert all(np.allclose(auto[name], whole[name], atol=1e-5) for name in whole)


def test_it_starts_from_the_trainers_own_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ends in the fourth step of six; the third is not made again, and the rows are those of one batch."""
    saving = {"save_strategy": "steps", "save_steps": 3}
    fine_tune(base, rows(), tmp_path / "whole", TrainSpec(SETTINGS, 6, 0))
    card(monkeypatch, fits=2, after=3)
    steps: list[int] = []
    fine_tune(
        base, rows(), tmp_path / "auto", TrainSpec({**AUTO, **saving}, 6, 0), work=tmp_path / "work",
        tick=lambda event: steps.append(event["step"]),
    )  # fmt: skip
    assert steps == [1, 2, 3, 4, 5, 6]
    auto, whole = weights(tmp_path / "auto"), weights(tmp_path / "whole")
    assert all(np.allclose(auto[name], whole[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize(("asked", "batches"), [(AUTO, [4, 2, 1]), (SETTINGS, [4])])
def test_what_cannot_be_smaller_is_not_tried_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], batches: list[int]
) -> None:
    """With one row a pass the error stands; without the key nothing is tried a second time."""
    tried = card(monkeypatch, fits=0)
    with pytest.raises(OutOfMemory, match=f"with batches of {batches[-1]} row"):
        fine_tune(base, rows(), tmp_path / "out", TrainSpec(asked, 4, 0))
    assert tried == batches


def test_a_run_records_the_batch_and_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In stage.json, and on the terminal."""
    recipe = tiny.recipe(tmp_path, ("reverse",), probe={"steps": 1})
    recipe["training"] = {**recipe["training"], "auto_batch": True}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe))
    card(monkeypatch, fits=2)
    code, _, errors = call(capsys, "run", file, "--out", tmp_path / "out", "--until", "probe")
    assert code == 0
    assert "01-probe/reverse: out of memory on the processor with batches of 4 rows" in " ".join(errors.split())
    facts = json.loads((tmp_path / "out/stages/01-probe/reverse/stage.json").read_text())["facts"]
    assert (facts["device_batch"], facts["accumulation"]) == (2, 2)
    assert [one["code"] for one in facts["findings"]] == ["batch-made-smaller"]


@pytest.mark.parametrize(
    ("batch", "passes", "smaller"), [(8, 1, (4, 2)), (6, 2, (3, 4)), (9, 1, (3, 3)), (5, 2, (1, 10)), (1, 4, None)]
)
def test_rows_of_a_step_stay(batch: int, passes: int, smaller: tuple[int, int] | None) -> None:
    """Of odd numbers, too."""
    done = halved({"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes}, 8)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    assert (done and tuple(done[name] for name in names)) == smaller


def test_the_batch_of_the_defaults_is_halved_as_well() -> None:
    """A recipe that gives no batch."""
    assert halved({}, 8) == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def test_what_it_cannot_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained; and it makes no stage again."""
    assert deciding(AUTO) == SETTINGS
    check_training(AUTO)
    with pytest.raises(CpiftError, match=r"^training.auto_batch: must be true or false \(got 4\)"):
        check_training({**SETTINGS, "auto_batch": 4})
    with pytest.raises(CpiftError, match=r"^probe.training.auto_batch: not with dataloader_drop_last"):
        check_training({**AUTO, "dataloader_drop_last": True}, "probe.training")
    with pytest.raises(CpiftError, match=r"unknown key 'auto_batsh'; did you mean 'auto_batch'"):
        check_training({"auto_batsh": True})
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CpiftError, match="works with one process"):
        check_training(AUTO)
