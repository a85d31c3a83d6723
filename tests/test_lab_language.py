"""S and M1 on a language model (benchmarks/lab/smol.py): the shared prefix, the merges in pieces, and the whole at tiny size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write
from safetensors.numpy import load_file
from tiny import base, jsonl, rows
from torch.nn import functional

from cpift import fuse, identify
from cpift.data.encoding import Encoded, encode, forced_rows
from cpift.evaluation.scores import EvalTask, evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from lab import pieces, smol
from lab.language import Language, batch_of
from lab.outcomes import lines
from lab.pieces import Merging

TINY = smol.Size(train=24, tune=4, evaluation=6, steps=dict.fromkeys(smol.SUITES["real"], 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture
def language(folder: Path) -> Language:
    return Language(folder)


def test_a_shared_prefix_gives_loss_and_gradient_of_whole_rows(language: Language) -> None:
    encoded = [encode(row, language.tokenizer) for row in rows("reverse", 5, 0)]
    batch = batch_of(encoded, [3, 0, 4])
    assert batch.prefix.shape[1] > 10
    functional.cross_entropy(language.logits(batch), batch.targets, reduction="sum").backward()
    ours = {name: p.grad.clone() for name, p in language.model.named_parameters()}
    language.model.zero_grad()
    for i in (3, 0, 4):
        ids, labels = torch.tensor([encoded[i].input_ids]), torch.tensor(encoded[i].labels)
        logits = language.model(input_ids=ids).logits[0, :-1]
        functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100).backward()
    for name, parameter in language.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-5, rtol=1e-4)


def test_outcomes_are_those_of_evaluate(language: Language, tmp_path: Path) -> None:
    """Of a model that has learnt half of what it is asked."""
    asked = rows("first", 24, 1)
    encoded = [encode(row, language.tokenizer) for row in asked]
    flat = language.trained(language.flat.clone(), encoded[:12], steps=40, rate=1e-2, seed=0)
    forced = forced_rows(asked, None, language.tokenizer)
    assert forced is not None
    right, loss = language.tried(flat, forced)
    language.model.save_pretrained(tmp_path / "m")
    language.tokenizer.save_pretrained(tmp_path / "m")
    theirs = evaluate(tmp_path / "m", {"t": EvalTask(asked, "exact_match")})["t"].items
    assert right.tolist() == [bool(item) for item in theirs]
    assert 0 < right.sum() < len(right)
    assert loss > 0


def test_merges_in_pieces(language: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stitching is identify and fuse on checkpoints; TIES is plain numpy's; random cores have as many in each tensor."""
    monkeypatch.setattr(pieces, "PIECE", 4000)
    rng = torch.Generator().manual_seed(0)
    start = language.flat.clone()
    tuned = [start + 0.01 * torch.randn(len(start), generator=rng) for _ in range(3)]
    updates = torch.stack(tuned) - start
    merging = Merging(start, updates, language.sizes, 0)
    assert len(merging.pieces) > 2
    shapes = {name: p.shape for name, p in language.model.named_parameters()}

    def checkpoint(name: str, flat: torch.Tensor) -> Path:
        parts = zip(language.names, flat.split(language.sizes), strict=True)
        return write(tmp_path / name, {n: part.reshape(shapes[n]).numpy() for n, part in parts})

    origin = checkpoint("base", start)
    models = {str(i): checkpoint(str(i), flat) for i, flat in enumerate(tuned)}
    for overlap, weight in (("largest", 0.0), ("mean", 0.1)):
        regions = identify(origin, models, percent=10)
        fuse(origin, models, tmp_path / overlap, regions=regions, overlap=overlap, weight=weight)
        file = load_file(tmp_path / overlap / "model.safetensors")
        ours = merging.made("stitch", {"p": 10.0, "overlap": overlap, "ω": weight})
        np.testing.assert_allclose(ours.numpy(), np.concatenate([file[n].ravel() for n in language.names]), atol=1e-6)
    ours = merging.made("ties", {"density": 0.1, "form": "sum", "λ": 0.7}).numpy()
    kept = updates.numpy().astype(float)
    for row in kept:
        for part in np.split(row, np.cumsum(language.sizes)[:-1]):
            part[np.argsort(-np.abs(part), kind="stable")[max(1, int(0.1 * len(part))) :]] = 0
    sign = np.where(kept.sum(0) >= 0, 1, -1)
    np.testing.assert_allclose(ours, start.numpy() + 0.7 * np.where(np.sign(kept) == sign, kept, 0).sum(0), atol=1e-6)
    core, drawn = merging.mask(1, "update", 10), merging.mask(1, "random", 10)
    counts = [[int(part.sum()) for part in mask.split(language.sizes)] for mask in (core, drawn)]
    assert counts[0] == counts[1]
    assert float((core & drawn).sum() / core.sum()) < 0.3


def test_a_unit_is_run_once_and_goes_on(folder: Path, tmp_path: Path) -> None:
    for task, kind in zip(smol.SUITES["real"], ("reverse", "upper", "double"), strict=True):
        for name, seed in (("train", 0), ("eval", 1)):
            jsonl(tmp_path / "data" / task / f"{name}.jsonl", rows(kind, 60, seed))
    arguments = ["--model", str(folder), "--data", str(tmp_path / "data"), "--out", str(tmp_path), "--units", "1", "--suites", "real"]  # fmt: skip
    smol.main(arguments, TINY)
    log = tmp_path / "smol.jsonl"
    whole = log.read_text()
    cells = {cell["cell"]: cell for cell in lines(log)}
    assert list(cells) == smol.names("real", 0)
    assert {len(cells[f"s-real/0/{label}"]["trials"]) for label in smol.TRIALS if label != smol.WIDE} == {7}
    assert not list(tmp_path.glob("models/*.pt"))
    log.write_text("".join(line + "\n" for line in whole.splitlines()[:-4]))
    smol.main(arguments, TINY)
    assert log.read_text() == whole


def test_no_question_is_trained_on_and_asked(language: Language, tmp_path: Path) -> None:
    found = rows("reverse", 60, 0)
    jsonl(tmp_path / "snips" / "train.jsonl", found)
    jsonl(tmp_path / "snips" / "eval.jsonl", found[:10])
    parts = smol.rows_of("snips", "real", tmp_path, 0, TINY, language)
    seen = [{tuple(prompt(row)) for row in part} for part in (parts.train, parts.tune, parts.evaluation)]
    assert [len(part) for part in seen] == [24, 4, 6]
    assert len(set.union(*seen)) == 34


def prompt(row: Encoded) -> list[int]:
    return row.input_ids[: next(i for i, label in enumerate(row.labels) if label != -100)]
