"""Greedy generation of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from cpift.data.healing import ContinueWith, Start, starts, text_of
from cpift.data.row_checks import Row
from cpift.data.turns import answer_text, end_of_turn, stop_ids, turn_of
from cpift.distributed.sharing import ALONE, Share
from cpift.evaluation.backends import Backend
from cpift.evaluation.batching import generation_room, in_batches
from cpift.typing import Network, Tokenizer


def generate(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda rows: None,
    begun: Sequence[Start] | None = None,
    share: Share = ALONE,
    backend: Backend | None = None,
) -> list[tuple[str, int]]:
    """Greedy answers to the rows' prompts, without their reasoning, to the end of the turn; their lengths in tokens.

    A turn ends at any of the model's end tokens, the tokenizer's, or the chat template's end of turn.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        rows: of one task.
        max_new_tokens: longest answer.
        progress: called with the number of rows done.
        begun: where each answer begins; by default :func:`cpift.data.healing.starts` of the rows.
        share: of this process.
        backend: generates in place of batches, but for prompts that share a token with their answers; None: nothing.
    """
    begun = starts(rows, tokenizer) if begun is None else begun
    prompts, ends = [start.ids for start in begun], stop_ids(tokenizer, network)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    answers: list[tuple[str, int]] = [("", 0)] * len(rows)

    def work(numbers: list[int]) -> None:
        batch = [batched[number] for number in numbers]
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in batch]).to(network.device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]).to(network.device)
        out = network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=ends or None,
            pad_token_id=pad,
            logits_processor=_held(tokenizer, [begun[i].rest for i in batch], width),
        )
        for i, new in zip(batch, out[:, width:].tolist(), strict=True):
            keep(i, new)
        progress(len(batch))

    def keep(i: int, new: list[int]) -> None:
        stop = next((at for at, token in enumerate(new) if token in ends), len(new))
        answers[i] = _answer(new[:stop], begun[i].rest, rows[i], tokenizer), stop

    batched, done = list(range(len(rows))), list[int]()
    if backend is not None:
        batched = [i for i in batched if begun[i].rest]
        done = share.own([i for i in range(len(rows)) if not begun[i].rest])
        made = backend.generate([prompts[i] for i in done], max_new_tokens, ends, pad) if done else []
        for i, new in zip(done, made, strict=True):
            keep(i, new)
        progress(len(done))
    if batched:
        room = generation_room(network, max_new_tokens)
        numbers = in_batches([len(prompts[i]) for i in batched], room, work, share)
        done += [batched[number] for number in numbers]
    share.fill(done, answers)
    return [(text, count) for text, count in answers]  # as lists they came from other processes


def _held(tokenizer: Tokenizer, rests: list[str], width: int) -> Any:
    """What holds the first tokens to the end of a prompt that they share a token with; None where none does."""
    return LogitsProcessorList([ContinueWith(tokenizer, rests, width)]) if any(rests) else None


def _answer(ids: list[int], rest: str, row: Row, tokenizer: Tokenizer) -> str:
    """The answer within what was generated: behind the reasoning, and behind the end of the prompt."""
    if "messages" in row or not isinstance(row["prompt"], str):
        turn = turn_of(tokenizer, row.get("chat_template_kwargs"))
        if turn.tail.strip() and end_of_turn(tokenizer) is None:  # the end of a turn is text: what follows it is none
            return str(tokenizer.decode(ids, skip_special_tokens=True)).partition(turn.tail.strip())[0]
        if turn.lead or turn.before:
            found = answer_text(tokenizer.decode(ids), turn, tokenizer.all_special_tokens)
            if found is not None:
                return found
    if rest:
        return text_of(ids, tokenizer)[len(rest) :]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text
