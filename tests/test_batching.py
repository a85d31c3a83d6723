"""Batches by the memory that rows take: caches as they really are, bounds kept, halved where memory ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from cpift.errors import OutOfMemory
from cpift.evaluation import batching
from cpift.evaluation.batching import (
    Room,
    batches,
    cache_bytes,
    forced_room,
    generation_room,
    in_batches,
    measured_cache,
)
from cpift.evaluation.scores import EvalTask, evaluate, generate
from cpift.train.models import load_model, load_tokenizer

NEW = 24
COMMON = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**COMMON, num_hidden_layers=3, num_key_value_heads=2, head_dim=16))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=128))


def gemma3() -> Any:
    """Two layers with a window of 12 tokens, one without."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **COMMON, num_hidden_layers=3, num_key_value_heads=2, head_dim=8, sliding_window=12, layer_types=kinds
    )
    return Gemma3ForCausalLM(config)


def lfm2() -> Any:
    """Convolutions, whose state is as large at any length, and attention."""
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(**COMMON, num_hidden_layers=4, num_key_value_heads=2, layer_types=kinds))


def deepseek() -> Any:
    """Keys wider than values, neither of the width that the configuration's head_dim suggests."""
    config = DeepseekV3Config(
        **COMMON, num_hidden_layers=2, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1, moe_intermediate_size=16, n_shared_experts=1,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


def generated_cache(network: Any, rows: int, prompt: int) -> int:
    """Bytes of the cache that generation really leaves."""
    ids = torch.randint(3, 64, (rows, prompt))
    out = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return cache_bytes(out.past_key_values)


@pytest.mark.parametrize("make", [llama, gpt2, gemma3, lfm2, deepseek])
def test_the_measured_cache_is_what_generation_leaves(make: Callable[[], Any]) -> None:
    """For 3 rows of 9 and of 40 tokens; a window keeps one token less than its size."""
    torch.manual_seed(0)
    network = make().eval()
    size = measured_cache(network)
    for prompt in (9, 40):
        real = generated_cache(network, 3, prompt)
        predicted = 3 * size.of(prompt + NEW - 1)  # the last token made is not read again
        assert real <= predicted <= real * 1.2, (make.__name__, prompt)


def test_the_measured_cache_of_a_llama_is_its_textbook_figure() -> None:
    """Layers × keys and values × heads × width × 4 bytes."""
    assert measured_cache(llama()).of(100) == 100 * 3 * 2 * 2 * 16 * 4


def test_under_autocast_the_cache_is_that_of_autocast() -> None:
    """Rotation makes fp32 of what autocast gives in bf16: no figure from the configuration alone could be relied on."""
    network = llama().eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert generated_cache(network, 3, 9) == 3 * measured_cache(network).of(9 + NEW - 1)


def test_a_model_without_a_cache_takes_a_safe_figure() -> None:
    """Keys and values of the full width in fp32."""

    class NoCache(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            return super().forward(*given, **{**named, "use_cache": False})

    class OldCode(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return super().forward(input_ids, attention_mask)

    for kind in (NoCache, OldCode):
        network = kind(LlamaConfig(**COMMON, num_hidden_layers=3, num_key_value_heads=2))
        assert measured_cache(network).of(10) == 10 * 2 * 3 * 32 * 4


def test_batches_are_of_like_length_and_within_the_room() -> None:
    """Each row once; no batch above the bytes or the rows, but for a row that is too long alone."""
    lengths = [5, 90, 7, 30, 31, 6, 29, 8, 200, 5]
    room = Room(100, lambda length: length, rows=3)
    made = list(batches(lengths, room))
    assert sorted(i for batch in made for i in batch) == list(range(10))
    assert [[lengths[i] for i in batch] for batch in made] == [[200], [90], [31, 30, 29], [8, 7, 6], [5, 5]]


def test_a_batch_without_memory_is_halved_and_so_are_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is done once; memory is freed between; no batch that failed is tried again as it stands."""
    freed: list[int] = []
    monkeypatch.setattr(batching.accelerator, "release", lambda: freed.append(1))
    done: list[int] = []
    tried: list[list[int]] = []

    def work(batch: list[int]) -> None:
        tried.append(batch)
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        done.extend(batch)

    in_batches([4] * 21, Room(40, lambda length: length, rows=100), work)
    assert sorted(done) == list(range(21))
    assert [len(batch) for batch in tried] == [10, 5, 3, 3, 3, 3, 3, 3, 3]
    assert len(freed) == 2


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    """It comes out as it is, at once."""
    tried = []

    def work(batch: list[int]) -> None:
        tried.append(batch)
        raise RuntimeError("expected all tensors to be on the same device")

    with pytest.raises(RuntimeError, match="same device"):
        in_batches([4] * 8, Room(1000, lambda length: length, rows=8), work)
    assert len(tried) == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("batching") / "base")


def limited(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Have the model lack memory for more rows than these; the rows of each pass over more than one token."""
    seen: list[int] = []
    forward = LlamaForCausalLM.forward

    def fake(self: Any, input_ids: Any = None, **named: Any) -> Any:
        if input_ids.shape[1] > 1:
            seen.append(len(input_ids))
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, input_ids, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", fake)
    return seen


def test_scores_with_too_little_memory_are_the_same(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced, loss and generated: 30 rows of which the device holds 4 at a time."""
    rows = [*tiny.rows("first", 25, 3), *tiny.rows("reverse", 5, 3)]
    tasks = {
        "match": EvalTask(rows, "exact_match"),
        "loss": EvalTask(rows, "loss"),
        "made": EvalTask(rows, "generate", max_new_tokens=6),
    }
    counts: list[int] = []
    whole = evaluate(base, tasks)
    seen = limited(monkeypatch, 4)
    small = evaluate(base, tasks, progress=counts.append)
    assert max(seen) == 30
    assert sum(counts) == 90
    for name in tasks:
        assert small[name].items == pytest.approx(whole[name].items, rel=1e-5), name
        assert small[name].tokens == whole[name].tokens


@pytest.mark.parametrize(("metric", "key"), [("loss", "training.max_length"), ("generate", "tasks.t.max_new_tokens")])
def test_no_memory_for_one_row_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch, metric: str, key: str) -> None:
    """It names the task, the device, the row's length and the key to lower."""
    limited(monkeypatch, 0)
    monkeypatch.setattr(batching, "measured_cache", lambda network: batching.CacheSize(((0, 1, None),)))
    with pytest.raises(OutOfMemory) as told:
        evaluate(base, {"t": EvalTask(tiny.rows("first", 6, 3), metric)})
    text = str(told.value)
    assert text.startswith("t: out of memory on the processor in scoring a batch of 1 row, ")
    assert text.endswith(f"or lower {key}")
    assert "\n" not in text


def test_generation_is_not_bounded_by_logits_it_does_not_make(base: Path) -> None:
    """A vocabulary of 150,000 and small layers: more rows than by logits of whole rows; and never more than the rows."""
    wide = {**COMMON, "vocab_size": 150_000, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(**wide, num_hidden_layers=1, num_key_value_heads=1)).eval()
    lengths = [100] * 600
    by_logits = batching.LOGITS // 150_000 // (100 + 256)
    assert by_logits == 3
    assert len(next(batches(lengths, generation_room(network, 256)))) == batching.ROWS_ON_CPU
    assert len(next(batches(lengths, forced_room(network)))) == batching.LOGITS // 150_000 // 100


def test_a_batch_on_a_device_is_bounded_by_its_memory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free, less what is reserved; all of it is used by generation, within the rows."""
    network = load_model(base).eval()
    on_device = type("OnDevice", (type(network),), {"device": torch.device("cuda")})
    seen = measured_cache(network)
    network.__class__ = on_device
    monkeypatch.setattr(batching, "measured_cache", lambda network: seen)
    for free in (100_000, 5_000_000):
        monkeypatch.setattr(batching.accelerator, "available", lambda free=free: free)
        for room in (generation_room(network, 20), forced_room(network)):
            assert room.nbytes <= free
            first = next(batches([30] * 2000, room))
            assert len(first) * room.cost(30) <= free
            assert len(first) == min(room.rows, room.nbytes // room.cost(30))
    assert len(next(batches([3] * 2000, generation_room(network, 1)))) <= batching.ROWS_ON_DEVICE


def test_generated_answers_do_not_depend_on_the_batch(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, or at most 3."""
    rows = tiny.rows("upper", 20, 1)
    network, words = load_model(base).eval(), load_tokenizer(base)
    with torch.inference_mode():
        together = generate(network, words, rows, 8)
        monkeypatch.setattr(batching, "ROWS_ON_CPU", 3)
        assert generate(network, words, rows, 8) == together
