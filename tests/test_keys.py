"""What is part of a stage's key: all that decides about its result, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.checkpoint.identity import checkpoint_identity
from cpift.data.sources import file_settings
from cpift.files import manifest
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.data import rows_stage
from cpift.runs.stages.train import spec_of, train_stage
from cpift.train.settings import DECIDES_NOTHING, SETTINGS, deciding


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    tiny.recipe(folder)
    return folder


def key(stage: Stage) -> str:
    return manifest.key_of(stage.made_of, {})


def trained(place: Path, **training: Any) -> Stage:
    run = Run(Recipe.parse(tiny.recipe(place)), place / "out")
    spec = spec_of(run, {"learning_rate": 1e-3, **training}, 3, ("reverse",))
    return train_stage(run, "01-probe/reverse", "probe", "", run.base, spec)


# By hand: each decides nothing about the weights.
NEUTRAL = {
    "report_to": "wandb", "run_name": "x", "logging_steps": 7, "logging_strategy": "no", "log_level": "info",
    "save_steps": 5, "save_strategy": "no", "activation_checkpointing": True, "gradient_checkpointing": True,
    "activation_offloading": True, "dataloader_num_workers": 2, "dataloader_pin_memory": False, "ddp_backend": "gloo",
    "ddp_timeout": 60, "torch_empty_cache_steps": 3, "skip_memory_metrics": False,
}  # fmt: skip
# Each changes the steps that a training makes.
DECIDING = {
    "learning_rate": 2e-3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "sgd",
    "weight_decay": 0.1, "max_length": 8, "bf16": True, "train_sampling_strategy": "random", "max_grad_norm": 0.5,
    "lr_scheduler_type": "cosine", "warmup_steps": 2, "neftune_noise_alpha": 5, "dataloader_drop_last": True,
    "label_smoothing_factor": 0.1, "loss_type": "dft", "adam_beta1": 0.8,
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_setting_that_decides_nothing_makes_no_stage_again(place: Path, name: str) -> None:
    assert key(trained(place, **{name: NEUTRAL[name]})) == key(trained(place))


@pytest.mark.parametrize("name", DECIDING)
def test_a_setting_that_decides_makes_the_stage_again(place: Path, name: str) -> None:
    assert key(trained(place, **{name: DECIDING[name]})) != key(trained(place))


def test_the_settings_that_decide_nothing_are_settings() -> None:
    assert set(SETTINGS) >= DECIDES_NOTHING
    assert not {name for name in DECIDES_NOTHING if SETTINGS[name].kind in ("refused", "set by cpift")}
    assert deciding({"report_to": "wandb", "optim": "sgd"}) == {"optim": "sgd"}


def test_a_new_version_of_the_code_makes_the_stage_again(place: Path) -> None:
    """The first is no part of the key: folders from before there were versions stand."""
    stage = trained(place)
    assert key(stage) == manifest.key_of(stage.settings, {})
    newer = replace(stage, code=2)
    assert key(newer) != key(stage)
    made = manifest.Made(key(stage), stage.made_of, {}, {}, {})
    assert manifest.differences(made, newer.made_of, {}) == ["code changed"]


def test_the_rows_of_a_folder_are_part_of_the_key(tmp_path: Path) -> None:
    """Wherever it lies; hidden files hold no rows."""

    def settings(folder: Path) -> dict[str, Any]:
        return file_settings(Task(train=str(folder), eval=str(folder)))

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        tiny.jsonl(folder / "a.jsonl", tiny.rows("upper", 3, 0))
        tiny.jsonl(folder / "more/b.jsonl", tiny.rows("upper", 3, 1))
    before = settings(one)
    assert settings(two) == before
    (two / ".cache").mkdir()
    (two / ".cache/x").write_text("1")
    (two / "cache-0a1b.arrow").write_text("1")
    assert settings(two) == before
    tiny.jsonl(two / "cache-rows.jsonl", tiny.rows("upper", 1, 1))
    assert settings(two) != before, "a file of rows with such a name"
    (two / "cache-rows.jsonl").unlink()
    assert settings(two) == before
    tiny.jsonl(two / "more/b.jsonl", tiny.rows("upper", 4, 1))
    assert settings(two) != before
    recipe = Recipe.parse({"model": "m", "tasks": {"t": {"train": str(one), "eval": str(one)}}})
    first = key(rows_stage(Run(recipe, Path("out")), "t"))
    tiny.jsonl(one / "c.jsonl", tiny.rows("upper", 1, 2))
    assert key(rows_stage(Run(recipe, Path("out")), "t")) != first


@pytest.mark.parametrize(
    "file",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
     "special_tokens_map.json", "added_tokens.json", "spiece.model", "qwen.tiktoken", "tokenization_own.py", "additional_chat_templates/tools.jinja"],
)  # fmt: skip
def test_every_file_of_the_tokenizer_is_part_of_a_checkpoints_identity(tmp_path: Path, file: str) -> None:
    base = tiny.base(tmp_path / "base")
    before = checkpoint_identity(base)
    assert checkpoint_identity(base) == before
    (base / file).parent.mkdir(exist_ok=True)
    text = (base / file).read_text() if (base / file).exists() else "{}"
    (base / file).write_text(json.dumps(json.loads(text)) + "\n" if file == "config.json" else text + " ")
    assert checkpoint_identity(base) != before


def test_the_identity_of_a_plain_checkpoint_is_that_of_older_runs(tmp_path: Path) -> None:
    """Five hashes: the weights, and the files that have always counted; what is not there is empty."""
    base = tiny.base(tmp_path / "base")
    parts = checkpoint_identity(base).split("-")
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    assert parts[1:] == [manifest.file_hash(base / name)[:16] if (base / name).is_file() else "" for name in names]
