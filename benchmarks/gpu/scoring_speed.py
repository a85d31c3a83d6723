"""Rows scored a second, teacher-forced and generated, at the batch that the package chooses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from inputs import Row, model_folder, model_name, some_rows
from step import Step, is_cuda, need, peak, release, reset_peak, run

NEEDS = ("pydantic", "xxhash", "transformers:AutoModelForCausalLM", "cpift.evaluation.scores")
MOST = 20000  # rows


def work(step: Step) -> None:
    need(*NEEDS)
    model = model_folder(step)
    step.record.add("model", model_name(step))
    new_tokens = 4 if step.tiny else 64
    _measure(step, model, "teacher-forced", "exact_match", new_tokens, first=4 if step.tiny else 256, until=0.45)
    _measure(step, model, "generated", "generate", new_tokens, first=2 if step.tiny else 64, until=0.95)


def _measure(step: Step, model: Path, what: str, metric: str, new_tokens: int, first: int, until: float) -> None:
    """A few rows give the speed; then as many as fill the time up to this share of the step's."""
    seconds, batch, tokens = _timed(model, some_rows(step, first), metric, new_tokens)
    note = ""
    room = until * step.seconds - (step.seconds - step.left())
    count = min(MOST, int(first * 0.7 * room / max(seconds, 1e-3)))
    if count > first and not step.tiny:
        first = count
        seconds, batch, tokens = _timed(model, some_rows(step, count), metric, new_tokens)
    elif not step.tiny:
        note = "; few rows, the time was short"
    if is_cuda():
        note += f"; peak on the device {peak() / 1e9:.2f} GB"
    if metric == "generate":
        step.record.add("generated tokens a second", tokens / seconds, "tokens/s", f"{new_tokens} new tokens at most")
    step.record.add(
        f"rows a second, {what}", first / seconds, "rows/s", f"{first} rows, up to {batch} in a batch{note}"
    )


def _timed(model: Path, rows: list[Row], metric: str, new_tokens: int) -> tuple[float, int, int]:
    """Seconds without loading the model, the largest batch, and the answers' tokens."""
    from cpift.evaluation.scores import EvalTask, evaluate

    tasks: dict[str, Any] = {
        "warm-up": EvalTask(rows[:2], metric, max_new_tokens=new_tokens),
        "timed": EvalTask(rows, metric, max_new_tokens=new_tokens),
    }
    seen: list[tuple[float, int]] = []
    release()
    reset_peak()
    scores = evaluate(model, tasks, progress=lambda count: seen.append((time.perf_counter(), count)))
    ends, done = time.perf_counter(), 0
    for moment, count in seen:  # the timed part begins where the warm-up's rows are through
        done += count
        if done >= 2:
            began = moment
            break
    return ends - began, max(count for _, count in seen), sum(scores["timed"].tokens)


if __name__ == "__main__":
    run(work)
