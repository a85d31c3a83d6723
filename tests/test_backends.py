"""What generates answers in place of batches: the same answers, the same ends, one line where it cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from cpift.checkpoint.adapter_config import WEIGHTS
from cpift.errors import CpiftError
from cpift.evaluation import backends, scores
from cpift.evaluation.opened import Opened
from cpift.evaluation.scores import EvalTask, evaluate, generate
from cpift.recipe.generation import GENERATION, Evaluate
from cpift.recipe.recipe import Recipe
from cpift.runs.preflight import check_models
from cpift.train.models import load_model, load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("backends") / "base")


def tasks() -> dict[str, EvalTask]:
    return {
        "upper": EvalTask(tiny.rows("upper", 5, 1), "exact_match", pattern="(.+)", max_new_tokens=6),
        "loss": EvalTask(tiny.rows("upper", 2, 1), "loss"),
    }


def test_continuous_batching_generates_what_batches_do(base: Path) -> None:
    """In fp32 on a processor: the very tokens."""
    batched, continuous = (evaluate(base, tasks(), generation=name) for name in ("transformers", "continuous"))
    assert batched == continuous
    assert any(batched["upper"].tokens)


class Engine:
    """A stand-in for vLLM's engine: it answers with the prompt's last two tokens, an end token, and one more."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        self.calls.append(("LLM", options))

    def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> list[Any]:
        self.calls.append(("generate", prompts, settings, use_tqdm))
        answers = [[*prompt["prompt_token_ids"][-2:], settings.stop_token_ids[0], 5] for prompt in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(answer))]) for answer in answers]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that the stand-in has seen."""
    module = SimpleNamespace(LLM=Engine, SamplingParams=lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(Engine, "calls", [])
    return Engine.calls


def test_vllm_gets_ids_and_greedy_settings_and_is_cut_at_the_end(base: Path, vllm: list[Any]) -> None:
    """An engine of the checkpoint's folder, in the precision of the scores; ``\\n`` and the role are the last tokens."""
    found = evaluate(base, tasks(), generation="vllm")
    (_, options), (_, prompts, settings, bar) = vllm
    assert options["model"] == options["tokenizer"] == str(base)
    assert (options["dtype"], options["generation_config"], bar) == ("float32", "vllm", False)
    assert (settings.temperature, settings.repetition_penalty, settings.max_tokens) == (0.0, 1.0, 6)
    words = tiny.tokenizer()
    assert settings.stop_token_ids == [words.eos_token_id]
    asked = words.apply_chat_template(tasks()["upper"].rows[0]["messages"][:1], add_generation_prompt=True)
    assert prompts[0] == {"prompt_token_ids": asked["input_ids"]}
    assert found["upper"].tokens == [2] * 5, "the end and what follows it are no part of the answer"
    assert found["loss"] == evaluate(base, {"loss": tasks()["loss"]})["loss"]


def test_the_precision_of_a_backend_stands_with_its_scores(
    base: Path, vllm: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with bf16 autocast vLLM has bf16 weights; ``dtype: float32`` gives fp32 to all."""
    monkeypatch.setattr(scores.accelerator, "scoring_autocast", lambda *_: torch.autocast("cpu", enabled=False))
    monkeypatch.setattr(
        scores.accelerator, "scoring_precision", lambda dtype="auto": "bf16 autocast" if dtype == "auto" else "fp32"
    )
    found = {dtype: evaluate(Opened(base, dtype=dtype), tasks(), generation="vllm") for dtype in ("auto", "float32")}
    assert [score.precision for score in found["auto"].values()] == ["bf16 weights", "bf16 autocast"]
    assert [score.precision for score in found["float32"].values()] == ["fp32", "fp32"]
    assert [call[1]["dtype"] for call in vllm if call[0] == "LLM"] == ["bfloat16", "float32"]


def test_prompts_that_share_a_token_with_their_answer_go_the_built_in_way(base: Path) -> None:
    """The backend cannot hold the first tokens to the prompt's end."""
    network, words = load_model(base).eval(), load_tokenizer(base)
    rows = [{"prompt": "Label: ", "completion": "positive"}, {"prompt": "a b", "completion": " c"}]
    seen: list[Any] = []

    class Fixed:
        precision = "fp32"

        def generate(self, prompts: Any, *_: Any) -> list[list[int]]:
            seen.extend(prompts)
            return [[7]] * len(prompts)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        start = scores.generate.__globals__["starts"]
        patch.setitem(scores.generate.__globals__, "starts", lambda rows, words: [_rest(s, i) for i, s in enumerate(start(rows, words))])  # fmt: skip
        answers = generate(network, words, rows, 3, backend=Fixed())
    assert len(seen) == 1
    assert answers[1] == (words.decode([7]), 1)
    assert answers[0][1] == 3


def _rest(start: Any, number: int) -> Any:
    return start if number else type(start)(start.ids, " ")


@pytest.mark.parametrize(
    ("name", "processes", "adapter", "said"),
    [
        ("vllm", 2, False, "is for a run of one process"),
        ("vllm", 1, True, "a probe.adapter is none; take continuous"),
    ],
)
def test_where_a_backend_cannot_be_used(vllm: list[Any], name: str, processes: int, adapter: bool, said: str) -> None:
    with pytest.raises(CpiftError, match=f"^evaluate.generation: {name} .*{said}"):
        backends.check_backend(GENERATION[name], processes, adapter)


def test_vllm_is_no_reader_of_adapters(base: Path, vllm: list[Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"")
    loaded = backends.Loaded(load_model(base), tmp_path, "fp32")
    with pytest.raises(CpiftError, match="is an adapter; take continuous"), backends.open_backend("vllm", loaded):
        pass
    assert not vllm


def test_a_package_that_is_missing_is_named_before_a_run(tmp_path: Path) -> None:
    recipe = {**tiny.recipe(tmp_path), "evaluate": {"generation": "vllm"}}
    with pytest.raises(CpiftError, match=r"^evaluate\.generation: vllm needs the package vllm; pip install vllm$"):
        check_models(Recipe.parse(recipe))
    with pytest.raises(CpiftError, match=r"evaluate\.generation: .*did you mean 'continuous'"):
        Recipe.parse({**recipe, "evaluate": {"generation": "continous"}})


def test_only_what_decides_about_a_score_is_in_its_key() -> None:
    """Nothing of the defaults; the backend only where an answer may be generated."""
    assert Evaluate().identity(generates=True) == {}
    chosen = Evaluate(dtype="float32", generation="continuous")
    assert chosen.identity(generates=True) == {"dtype": "float32", "generation": "continuous"}
    assert chosen.identity(generates=False) == {"dtype": "float32"}


def test_a_failed_continuous_batch_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers returns fewer answers, and no error."""
    network = load_model(base)
    monkeypatch.setattr(type(network), "generate_batch", lambda *_, **named: {})
    loaded = backends.Loaded(network, base, "fp32")
    with backends.open_backend("continuous", loaded) as backend:
        assert backend is not None
        with pytest.raises(CpiftError) as refused:
            backend.generate([[3, 4]], 2, [2], 0)
    assert str(refused.value) == (
        "evaluate.generation: continuous batching fails with this model (1 rows have no answer); take transformers"
    )
