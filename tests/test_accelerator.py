"""What a stage leaves behind: nothing in memory; a device's peak and precision on record."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from device_memory import CPU, CUDA, SETTINGS, made, neutral_score, raising, rows

from cpift.errors import CpiftError, OutOfMemory
from cpift.evaluation import forced, opened
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.runs.publish import mixed_precision
from cpift.train import accelerator, models
from cpift.train import config as config_module
from cpift.train import fine_tune as training
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("accelerator") / "base")


@pytest.fixture(scope="module")
def region(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Region:
    return identify(base, {"t": tiny.base(tmp_path_factory.mktemp("tuned") / "tuned", seed=1)}, "5")["t"]


class Watched:
    """Weak references to what is made during a call, with Python's own collector switched off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        load = models.load_model

        def loading(*given: Any) -> Any:
            model = load(*given)
            self.seen += [weakref.ref(model), *map(weakref.ref, model.parameters())]
            return model

        for module in (training, opened, models):
            monkeypatch.setattr(module, "load_model", loading)
        create = training._Trainer.create_optimizer

        def creating(trainer: Any, *given: Any) -> Any:
            made = create(trainer, *given)
            self.seen += [weakref.ref(trainer), weakref.ref(trainer.optimizer)]
            return made

        monkeypatch.setattr(training._Trainer, "create_optimizer", creating)

    @property
    def alive(self) -> list[str]:
        return [type(ref()).__name__ for ref in self.seen if ref() is not None]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    gc.collect()
    gc.disable()
    try:
        yield Watched(monkeypatch)
    finally:
        gc.enable()


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_a_training_stays(
    base: Path, region: Region, tmp_path: Path, watched: Watched, frozen: bool
) -> None:
    """Model, every parameter, trainer and optimizer are gone as fine_tune returns."""
    settings = {**SETTINGS, "bf16": frozen}
    done = fine_tune(base, rows(), tmp_path / "out", TrainSpec(settings, 2, 0), frozen=region if frozen else None)
    assert (done.frozen > 0) == frozen
    assert done.precision == ("bf16 autocast" if frozen else "fp32")
    assert len(watched.seen) > 10
    assert watched.alive == []


@pytest.mark.parametrize("what", ["diverges", "no memory", "another error"])
def test_nothing_of_a_training_that_failed_stays(
    base: Path, region: Region, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Not even while its error is still looked at."""
    settings = SETTINGS
    if what == "diverges":
        settings = {**SETTINGS, "learning_rate": 1e20, "max_grad_norm": 0.0}
    else:
        error: Exception = torch.OutOfMemoryError(CUDA) if what == "no memory" else ValueError("a fault")

        def step(self: Any, model: Any, inputs: Any, *given: Any) -> Any:
            raise error

        monkeypatch.setattr(training._Trainer, "training_step", step)
    with pytest.raises(ValueError if what == "another error" else CpiftError) as told:
        fine_tune(base, rows(), tmp_path / "out", TrainSpec(settings, 9, 0), frozen=region)
    assert len(watched.seen) > 10
    assert watched.alive == []
    assert str(told.value)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_scoring_stays(base: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Forced and generated, and the neutral text; and where there is no memory even for one row."""
    tasks = {"t": EvalTask(tiny.rows("first", 6, 0), "loss"), "g": EvalTask(tiny.rows("first", 6, 0), "generate")}
    if fails:
        monkeypatch.setattr(forced, "padded", raising(torch.OutOfMemoryError(CUDA)))
        with pytest.raises(OutOfMemory) as told:
            evaluate(base, tasks)
        assert watched.alive == []
        assert "t: out of memory" in str(told.value)
        return
    evaluate(base, tasks)
    assert watched.seen
    assert watched.alive == []
    neutral_score(base)
    assert watched.alive == []


def nothing(folders: Mapping[str, Path]) -> dict[str, Any]:
    return {}


def test_peak_device_memory_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device that holds most; what was there before the stage does not count; absent without a device."""
    assert not {"device", "peak_device_memory", "device_memory_after"} & made(tmp_path / "cpu", nothing).keys()
    now, peak = [100, 300], [5_000, 300]
    device = torch.accelerator
    monkeypatch.setattr(device, "is_available", lambda: True)
    monkeypatch.setattr(device, "device_count", lambda: 2)
    monkeypatch.setattr(device, "memory_allocated", lambda index: now[index])
    monkeypatch.setattr(device, "max_memory_allocated", lambda index: peak[index])
    monkeypatch.setattr(device, "reset_peak_memory_stats", lambda index: peak.__setitem__(index, now[index]))
    monkeypatch.setattr(accelerator, "describe", lambda: "Card (80.0 GiB)")

    def work(folders: Mapping[str, Path]) -> dict[str, Any]:
        peak[1] = 4_000
        now[0] = 120
        return {}

    facts = made(tmp_path / "device", work)
    assert facts["device"] == "Card (80.0 GiB)"
    assert facts["peak_device_memory"] == 4_000
    assert facts["device_memory_after"] == 300


def test_scoring_on_a_device_is_under_bf16_autocast_and_on_record(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 weights, bf16 products; near the scores in fp32, and marked as what they are."""
    tasks = {"t": EvalTask(tiny.rows("first", 6, 0), "loss"), "g": EvalTask(tiny.rows("first", 3, 0), "generate")}
    plain, text = evaluate(base, tasks), neutral_score(base)
    assert {score.precision for score in plain.values()} == {text["precision"]} == {"fp32"}
    monkeypatch.setattr(accelerator, "scoring_precision", lambda *_: "bf16 autocast")
    monkeypatch.setattr(accelerator, "scoring_autocast", lambda *_: torch.autocast("cpu", torch.bfloat16))
    kinds: set[torch.dtype] = set()
    loss = forced.mean_loss
    monkeypatch.setattr(forced, "mean_loss", lambda logits, *rest: kinds.add(logits.dtype) or loss(logits, *rest))
    half, half_text = evaluate(base, tasks), neutral_score(base)
    assert kinds == {torch.bfloat16}
    assert {score.precision for score in half.values()} == {half_text["precision"]} == {"bf16 autocast"}
    assert half["t"].items != plain["t"].items
    assert half["t"].items == pytest.approx(plain["t"].items, rel=0.01)
    assert half_text["score"] == pytest.approx(text["score"], rel=0.01)
    assert half["t"].to_dict()["precision"] == "bf16 autocast"


def test_cast_weights_are_kept_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as much memory again, if it is less than half of what is free."""
    network = torch.nn.Linear(100, 100, bias=False)
    monkeypatch.setattr(accelerator, "scoring_precision", lambda *_: "bf16 autocast")
    for free, keeps in ((40_001, True), (40_000, False)):
        monkeypatch.setattr(accelerator, "available", lambda free=free: free)
        with accelerator.scoring_autocast(network):
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_cache_enabled() == keeps


def test_the_precision_of_scoring_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor scores in fp32, with AMX or without; a card without bf16 of its own as well."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert accelerator.bf16_helps()
    assert accelerator.scoring_precision() == "fp32"
    monkeypatch.setattr(accelerator, "device", lambda: torch.device("cuda"))
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert accelerator.scoring_precision() == ("bf16 autocast" if native else "fp32")


def test_a_card_is_described_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what batches may take of it: free and cached memory, less a tenth of the card."""
    card = type("Card", (), {"name": "NVIDIA H100 80GB HBM3", "total_memory": 80 * 2**30})
    monkeypatch.setattr(accelerator, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 20 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 15 * 2**30)
    assert accelerator.describe() == "NVIDIA H100 80GB HBM3 (80.0 GiB)"
    assert accelerator.available() == 27 * 2**30
    held = "NVIDIA H100 80GB HBM3 (80.0 GiB), of which other processes hold 30.0 GiB,"
    assert accelerator.lacking(torch.OutOfMemoryError(CUDA)) == held
    assert accelerator.lacking(RuntimeError(CPU)) == "the processor"


def test_scores_of_two_precisions_are_not_set_side_by_side_in_silence() -> None:
    """A score without the mark is an older one, in fp32."""
    old, new = {"score": 1.0}, {"score": 1.0, "precision": "bf16 autocast"}
    assert mixed_precision({"base": {"a": old, "b": {**old, "precision": "fp32"}}}) == ""
    assert mixed_precision({"base": {"a": new}, "fused": {"a": new}}) == ""
    text = mixed_precision({"base": {"a": old, "b": old}, "fused": {"a": new, "b": old}})
    assert text.startswith("scores were made in bf16 autocast for fused/a, in fp32 for the rest")


@pytest.mark.parametrize("given", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("known", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_has_two_names(monkeypatch: pytest.MonkeyPatch, given: str, known: str) -> None:
    """A recipe may have either; transformers gets the one that it knows, and only that."""
    monkeypatch.setattr(config_module, "_CHECKPOINTING", known)
    seen: dict[str, Any] = {}
    config = config_module.SFTConfig(output_dir="unused", use_cpu=True, bf16=False, activation_checkpointing=False)
    monkeypatch.setattr(config_module, "SFTConfig", lambda **settings: seen.update(settings) or config)
    monkeypatch.setattr(config_module, "typed", lambda settings, *where: dict(settings))
    config_module.sft_config({given: True}, Path("unused"), steps=1, seed=0)
    assert {name: value for name, value in seen.items() if "checkpointing" in name} == {known: True}
    seen.clear()
    config_module.sft_config({}, Path("unused"), steps=1, seed=0)
    assert {name: value for name, value in seen.items() if "checkpointing" in name} == {known: False}


def test_a_training_on_the_processor_of_a_machine_with_a_card_is_as_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """training.use_cpu: bf16 autocast by what the processor can, not the card."""
    monkeypatch.setattr(accelerator, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert accelerator.bf16_helps()
    assert not accelerator.bf16_helps(on_cpu=True)
    assert not config_module.sft_config({"use_cpu": True}, Path("unused"), steps=1, seed=0).bf16


def test_the_callback_drops_the_values_it_kept(base: Path, region: Region) -> None:
    """It lives as long as its trainer; what it found out stays."""
    network = models.load_model(base)
    callback = training.FreezeCallback(region)
    callback.on_train_begin(None, None, None, model=network, optimizer=torch.optim.AdamW(network.parameters()))
    values = weakref.ref(callback._frozen._parts[0].values)
    assert values() is not None
    callback.on_train_end(None, None, None)
    assert (callback.count, callback.changed) == (region.count, 0)
    assert values() is None
