"""Rows a second beside lm-eval, on the same model and rows: multiple choice, and exact match of generated answers.

    python benchmarks/lm_eval_speed.py MODEL

Both score a model that is in memory; loading is not timed. CPU seconds are of this process, so that they mean something
on a machine that is busy otherwise. The outcomes are compared row by row.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from cpift.data.store import write_jsonl
from cpift.evaluation import harness
from cpift.evaluation.guard import questions
from cpift.evaluation.scores import score_task
from cpift.evaluation.task import EvalTask
from cpift.train.models import load_model, load_tokenizer

PATTERN = r"(\d+)"
LONGEST = 8  # tokens of an answer


def main() -> None:
    """Print a line a metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--rows", type=int, default=56, help="of each metric")
    parser.add_argument("--batch", type=int, nargs="*", default=[16], help="batch sizes of lm-eval; the fastest counts")
    asked = parser.parse_args()
    network, tokenizer = load_model(asked.model), load_tokenizer(asked.model)
    with tempfile.TemporaryDirectory() as scratch:
        for name, ours in tasks(asked.rows).items():
            write_task(Path(scratch), name, ours)
            theirs = EvalTask([], f"lm_eval:{name}", folder=scratch)
            warm_up(network, tokenizer, theirs)
            own = timed(network, tokenizer, ours)
            best = None
            for size in asked.batch:
                harness._BATCH = size
                found = timed(network, tokenizer, theirs)
                best = found if best is None or found[0] < best[0] else best
            assert best is not None
            same = sum(a == b for a, b in zip(own[2], best[2], strict=True))
            rows = len(own[2])
            print(
                f"{name}: {rows} rows, {same} with the same outcome; cpift {rows / own[0]:.2f} rows a CPU second "
                f"({own[0]:.1f} s CPU, {own[1]:.1f} s wall), lm-eval {rows / best[0]:.2f} ({best[0]:.1f} s CPU, "
                f"{best[1]:.1f} s wall)",
                flush=True,
            )


def timed(network: Any, tokenizer: Any, task: EvalTask) -> tuple[float, float, list[float]]:
    """CPU seconds, seconds, outcomes."""
    cpu, wall = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        items = score_task(network, tokenizer, task, None).items
    return time.process_time() - cpu, time.perf_counter() - wall, items


def warm_up(network: Any, tokenizer: Any, task: EvalTask) -> None:
    """Imports, and the data set's cache."""
    with torch.inference_mode():
        score_task(network, tokenizer, EvalTask([], task.metric, folder=task.folder, settings={"limit": 2}), None)


def tasks(rows: int) -> dict[str, EvalTask]:
    """The rows of both metrics."""
    rng, sums = random.Random(0), []
    for _ in range(rows):
        a, b = rng.randint(1, 40), rng.randint(1, 40)
        sums.append({"prompt": f"{a} + {b} =", "completion": f" {a + b}", "answer": str(a + b)})
    choice = (questions() * (rows // len(questions()) + 1))[:rows]
    return {
        "speed_choice": EvalTask(choice, "multiple_choice"),
        "speed_exact": EvalTask(sums, "exact_match", PATTERN, max_new_tokens=LONGEST, match="first"),
    }


def write_task(folder: Path, name: str, task: EvalTask) -> None:
    """The same rows as a task of lm-eval."""
    data = folder / f"{name}.jsonl"
    write_jsonl(data, task.rows)
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    if task.metric == "multiple_choice":
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{options.index(answer)}}",
            "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        }
    else:
        first = {"function": "regex", "regex_pattern": PATTERN, "group_select": 0}
        config |= {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"max_gen_toks": LONGEST, "do_sample": False, "until": ["<none>"]},
            "filter_list": [{"name": "first", "filter": [first, {"function": "take_first"}]}],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main()
