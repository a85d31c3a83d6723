"""fine_tune(): the same again for the same seed, resumable, with frozen elements kept, and stopped when it diverges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.train.config import batch_rows, check_training
from cpift.train.fine_tune import fine_tune
from cpift.train.settings import SETTINGS as FIELDS
from cpift.train.spec import TrainSpec

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2}
CORE = Region({"model.embed_tokens.weight": np.arange(0, 4000, 3, dtype=np.int32)}, 10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("training") / "base")


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose training draws at random: the state of the generators counts."""
    return tiny.base(tmp_path_factory.mktemp("dropping") / "base", attention_dropout=0.2)


def train(base: Path, out: Path, **more: Any) -> dict[str, np.ndarray]:
    """Six steps on the reversed words, more than an epoch; returns the weights."""
    training = {**SETTINGS, **more.pop("training", {})}
    encoded = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 20, 0)]
    fields = {name: more.pop(name) for name in ("trainable", "chat") if name in more}
    fine_tune(base, encoded, out, TrainSpec(training, 6, more.pop("seed", 0), **fields), **more)
    return load_file(out / "model.safetensors")


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[n].view(np.int32), b[n].view(np.int32)) for n in a)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(base: Path, tmp_path: Path) -> None:
    """Order of rows and everything drawn depend on the seed."""
    first = train(base, tmp_path / "a")
    assert same(first, train(base, tmp_path / "b"))
    assert not same(first, train(base, tmp_path / "c", seed=1))


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd", "adafactor"])
def test_a_frozen_region_stays_and_the_rest_moves(base: Path, tmp_path: Path, optimizer: str) -> None:
    """Through the trainer, with clipping, accumulation and weight decay."""
    more = {
        "optim": optimizer,
        "weight_decay": 0.1,
        "max_grad_norm": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    }
    name, positions = "model.embed_tokens.weight", CORE.positions["model.embed_tokens.weight"]
    after = train(base, tmp_path / "o", frozen=CORE, training=more)[name].ravel()
    before = load_file(base / "model.safetensors")[name].ravel()
    assert np.array_equal(after[positions].view(np.int32), before[positions].view(np.int32))
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("frozen", [None, CORE], ids=["free", "frozen"])
def test_a_training_cut_off_goes_on_to_the_same_bits(base: Path, tmp_path: Path, frozen: Region | None) -> None:
    """From the trainer's own checkpoint, in the middle of an epoch."""

    class Cut(Exception):
        pass

    def cut(event: Mapping[str, Any]) -> None:
        if event["step"] == 3:
            raise Cut

    more = {"training": {"save_steps": 2}, "frozen": frozen}
    whole = train(base, tmp_path / "whole", work=tmp_path / "w1", **more)
    with pytest.raises(Cut):
        train(base, tmp_path / "cut", work=tmp_path / "w2", tick=cut, **more)
    assert not (tmp_path / "cut").exists()
    steps: list[int] = []
    resumed = train(base, tmp_path / "cut", work=tmp_path / "w2", tick=lambda e: steps.append(e["step"]), **more)
    assert steps[0] == 3
    assert same(whole, resumed)


def test_a_training_cut_off_after_its_last_step_makes_no_further_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer itself makes one more where the last step is not the last of an epoch."""

    class Cut(Exception):
        pass

    def cut(*_: Any, **__: Any) -> None:
        raise Cut

    more = {"training": {"save_steps": 1, "lr_scheduler_type": "constant"}}
    whole = train(base, tmp_path / "whole", work=tmp_path / "w1", **more)
    with monkeypatch.context() as patched:
        patched.setattr("cpift.train.fine_tune.save", cut)
        with pytest.raises(Cut):
            train(base, tmp_path / "cut", work=tmp_path / "w2", **more)
    resumed = train(base, tmp_path / "cut", work=tmp_path / "w2", **more)
    assert same(whole, resumed)


def test_a_loss_that_is_no_number_stops_the_training(base: Path, tmp_path: Path) -> None:
    """With the step and what to change; nothing is saved."""
    with pytest.raises(CpiftError, match=r"at step \d+; lower training.learning_rate"):
        train(base, tmp_path / "o", training={"learning_rate": 1e30, "max_grad_norm": 0.0})
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"learning_rte": 1}, "did you mean 'learning_rate'"),
        ({"max_steps": 3}, "set by cpift"),
        ({"output_dir": "x"}, "set by cpift"),
        ({"lr_scheduler_type": "nope"}, "SFTConfig refuses"),
        ({"per_device_train_batch_size": 0}, "at least 1"),
        ({"packing": True}, "packing"),
    ],
)
def test_settings_are_checked_before_anything_starts(training: dict[str, Any], words: str) -> None:
    """A misspelt key, one that the stage decides about, a value that is refused."""
    with pytest.raises(CpiftError, match=words):
        check_training(training)


def test_settings_that_are_fine() -> None:
    """Any field of SFTConfig, the older name of activation checkpointing too."""
    check_training({"gradient_checkpointing": True, "weight_decay": 0.1, "warmup_steps": 5})
    assert batch_rows({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}) == 12


@pytest.mark.parametrize("frozen", [None, CORE], ids=["free", "frozen"])
@pytest.mark.parametrize("at", [3, 5])
def test_a_training_with_dropout_goes_on_to_the_same_bits(
    dropping: Path, tmp_path: Path, at: int, frozen: Region | None
) -> None:
    """Cut after the first checkpoint and after the second, one kept; generators, momentum and rate go on as they were."""

    class Cut(Exception):
        pass

    def cut(event: Mapping[str, Any]) -> None:
        if event["step"] == at:
            raise Cut

    training = {"save_steps": 2, "save_strategy": "steps", "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    more: dict[str, Any] = {"training": {**training, "per_device_train_batch_size": 2}, "frozen": frozen}
    whole = train(dropping, tmp_path / "whole", work=tmp_path / "w1", **more)
    with pytest.raises(Cut):
        train(dropping, tmp_path / "cut", work=tmp_path / "w2", tick=cut, **more)
    assert [f.name for f in (tmp_path / "w2").glob("checkpoint-*")] == [f"checkpoint-{at - 1}"]
    steps: list[int] = []
    resumed = train(dropping, tmp_path / "cut", work=tmp_path / "w2", tick=lambda e: steps.append(e["step"]), **more)
    assert steps == list(range(at, 7))
    assert same(whole, resumed)
    assert not same(whole, load_file(dropping / "model.safetensors"))


def test_a_checkpoint_cut_short_is_passed_over(base: Path, tmp_path: Path) -> None:
    """One that was being written when the run was killed: training goes on from the whole one before it."""

    class Cut(Exception):
        pass

    def cut(event: Mapping[str, Any]) -> None:
        if event["step"] == 3:
            raise Cut

    more: dict[str, Any] = {"training": {"save_steps": 2}}
    whole = train(base, tmp_path / "whole", **more)
    with pytest.raises(Cut):
        train(base, tmp_path / "cut", work=tmp_path / "w", tick=cut, **more)
    (tmp_path / "w" / "checkpoint-4").mkdir()
    (tmp_path / "w" / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    assert same(whole, train(base, tmp_path / "cut", work=tmp_path / "w", **more))


def test_what_a_training_tells(base: Path, tmp_path: Path) -> None:
    """Steps, losses, and how much was frozen and changed."""
    encoded = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 20, 0)]
    told = fine_tune(base, encoded, tmp_path / "o", TrainSpec(SETTINGS, 3, 0), frozen=CORE)
    assert (told.steps, told.frozen, told.frozen_changed) == (3, CORE.count, 0)
    assert [step for step, _, _ in told.losses] == [1, 2, 3]
    assert told.losses[-1][1] < told.losses[0][1]


@pytest.mark.parametrize("key", [name for name, field in FIELDS.items() if field.kind == "set by cpift"])
def test_what_the_stage_decides_cannot_be_set(key: str) -> None:
    """Each key is named."""
    with pytest.raises(CpiftError, match=f"training.{key}: is set by cpift"):
        check_training({key: 1})
