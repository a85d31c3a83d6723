"""EWC: its penalty against plain numpy, what it does to a training, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from tiny_add import arrivals, models, same_bits
from tiny_run import Cut, Listener, call, one_thread
from transformers import AutoModelForCausalLM

from cpift.data.encoding import Encoded, encode
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.train.elastic import Elastic, check_elastic
from cpift.train.fine_tune import fine_tune
from cpift.train.models import load_tokenizer
from cpift.train.spec import TrainSpec

SETTINGS = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2, "save_strategy": "no"}


def encoded(base: Path, kind: str, count: int) -> list[Encoded]:
    tokenizer = load_tokenizer(base)
    return [encode(row, tokenizer, 64) for row in tiny.rows(kind, count, 0)]


def information(base: Path, rows: list[Encoded]) -> dict[str, np.ndarray]:
    """Mean over rows of the squared gradient of the row's summed loss, by the model's own loss."""
    network = AutoModelForCausalLM.from_pretrained(base).eval()
    found = {name: np.zeros(p.shape) for name, p in network.named_parameters()}
    for row in rows:
        network.zero_grad()
        loss = network(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        (loss * sum(label != -100 for label in row.labels[1:])).backward()
        for name, parameter in network.named_parameters():
            found[name] += parameter.grad.double().numpy() ** 2 / len(rows)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("elastic") / "base")


def test_the_penalty_and_its_gradient_are_numpys(base: Path) -> None:
    rows = encoded(base, "upper", 3)
    network = AutoModelForCausalLM.from_pretrained(base)
    network.train()
    elastic = Elastic.of(network, rows, 40.0)
    assert network.training
    assert float(elastic.penalty().detach()) == 0
    expected, before = information(base, rows), {n: p.detach().clone() for n, p in network.named_parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    moved = {n: (p.detach() - before[n]).double().numpy() for n, p in network.named_parameters()}
    penalty = elastic.penalty()
    assert float(penalty.detach()) == pytest.approx(
        20 * sum(np.sum(expected[n] * moved[n] ** 2) for n in moved), rel=1e-4
    )
    (penalty / 2).backward()
    for name, parameter in network.named_parameters():
        wanted = 20 * expected[name] * moved[name]
        np.testing.assert_allclose(parameter.grad.numpy(), wanted, rtol=1e-3, atol=1e-6 * np.abs(wanted).max())


def train(base: Path, out: Path, strength: float, **changes: Any) -> Any:
    rows, kept = encoded(base, "reverse", 8), encoded(base, "upper", 4)
    spec = TrainSpec({**SETTINGS, **changes}, 6, 0, ewc=strength)
    with one_thread():
        return fine_tune(base, rows, out, spec, kept=kept)


def away(base: Path, out: Path) -> tuple[float, float]:
    """Σ F (θ − θ⁰)² / 2 and Σ (θ − θ⁰)² / 2, from the files."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    expected = information(base, encoded(base, "upper", 4))
    square = {n: (after[n].astype(np.float64) - before[n]) ** 2 for n in before}
    return sum(np.sum(expected[n] * square[n]) for n in square) / 2, sum(s.sum() for s in square.values()) / 2


def test_a_training_is_held_where_it_matters(base: Path, tmp_path: Path) -> None:
    """What matters for the kept rows moves far less, while the model still moves; the penalty is that of the files."""
    assert train(base, tmp_path / "free", 0).penalty is None
    held = train(base, tmp_path / "held", 30.0)
    (free_weighted, free_all), (weighted, whole) = away(base, tmp_path / "free"), away(base, tmp_path / "held")
    assert held.penalty == pytest.approx(30 * weighted, rel=1e-3)
    assert weighted < 0.2 * free_weighted
    assert weighted / free_weighted < 0.5 * whole / free_all


def test_a_strength_too_large_is_named(base: Path, tmp_path: Path) -> None:
    """The penalty stands in the loss, which then diverges."""
    with pytest.raises(CpiftError, match=r"diverges: .*; lower protect\.ewc, or lower training\.learning_rate"):
        train(base, tmp_path / "out", 1e6)


def test_accumulated_passes_have_one_penalty(base: Path, tmp_path: Path) -> None:
    """Two passes of two rows make the step of one of four: each brings half of the penalty."""
    for name, changes in {
        "whole": {},
        "halves": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    }.items():
        train(base, tmp_path / name, 1e3, optim="sgd", learning_rate=1e-3, **changes)
    whole, halves, before = (
        load_file(f / "model.safetensors") for f in (tmp_path / "whole", tmp_path / "halves", base)
    )
    for name, weight in whole.items():
        moved = np.abs(weight - before[name]).max()
        assert np.abs(weight - halves[name]).max() <= 1e-3 * moved + 1e-7, name


def test_an_addition_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    """Cut off in its training: what matters is measured anew, on the model before. Kept rows need not be replayed."""
    place = models(tmp_path)
    training = {
        "per_device_train_batch_size": 4,
        "bf16": False,
        "max_length": 64,
        "learning_rate": 1e-2,
        "save_steps": 1,
    }
    protect = {"ewc": 100.0, "replay": 0, "average": 1}
    recipe = Recipe.parse(arrivals(place, ["upper"], ["reverse"], protect=protect, training=training, guard=[]))
    with one_thread():
        with pytest.raises(Cut):
            run(recipe, tmp_path / "cut", reporter=Listener("progress", "04-arrive/1/train", at=2))
        run(recipe, tmp_path / "cut")
        run(recipe, tmp_path / "whole")
    assert same_bits(tmp_path / "cut/model", tmp_path / "whole/model")
    made = json.loads((tmp_path / "whole/stages/04-arrive/1/train/stage.json").read_text())
    assert made["settings"]["ewc"] == {"strength": 100.0, "rows": {"reverse": 12}}
    assert made["facts"]["penalty"] > 0
    assert "EWC: strength 100" in (tmp_path / "whole/report.html").read_text()


@pytest.mark.parametrize(
    ("kept", "changes", "says"),
    [
        ([], {}, "protect.ewc: what matters is measured on kept rows, and every task is one that arrives"),
        (
            ["reverse"],
            {"arrivals": {"adapter": {"type": "lora"}}},
            "protect.ewc: is not combined with arrivals.adapter",
        ),
        (["reverse"], {"arrivals": {"osf": 0.5}}, "protect.ewc: is not combined with arrivals.osf"),
    ],
)
def test_it_is_refused(tmp_path: Path, kept: list[str], changes: dict[str, Any], says: str) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CpiftError, match=says):
        Recipe.parse(arrivals(tmp_path, ["upper"], kept, protect={"ewc": 1.0}, **changes))


@pytest.mark.parametrize(
    ("changes", "engine", "says"),
    [
        ({}, {"is_fsdp_enabled": True}, "is not trained sharded"),
        ({}, {"is_deepspeed_enabled": True}, "is not trained sharded"),
        ({"dtype": "bfloat16"}, {}, "needs weights in float32"),
        ({"osf": 0.5}, {}, "is for training all parameters"),
    ],
)
def test_a_training_that_cannot_hold_it_is_refused(
    base: Path, changes: dict[str, Any], engine: dict[str, bool], says: str
) -> None:
    rows, spec = encoded(base, "upper", 1), TrainSpec({}, 1, 0, ewc=1.0, **changes)
    whole = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False, "model": torch.nn.Linear(1, 1)}
    with pytest.raises(CpiftError, match=says):
        check_elastic(spec, rows, SimpleNamespace(**{**whole, **engine}))
    with pytest.raises(CpiftError, match="no kept row has a trained part left"):
        check_elastic(TrainSpec({}, 1, 0, ewc=1.0), [], SimpleNamespace(**whole))


def test_the_command_tells_what_ewc_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny.jsonl(tmp_path / "new.jsonl", tiny.rows("upper", 12, 0))
    tiny.base(tmp_path / "mine")
    options = ("--task", f"new={rows}", "--out", tmp_path / "out", "--set", "protect.ewc=10")
    code, _, err = call(capsys, "add", "--model", tmp_path / "mine", *options)
    assert code == 2
    assert "give some by --keep" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
