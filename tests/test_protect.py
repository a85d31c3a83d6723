"""``cpift protect``: each criterion against plain torch or numpy, columns, patterns, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
import torch
import zoo
from checkpoints import family, write
from safetensors.torch import load_file, save_file
from tiny_run import call

from cpift.data.encoding import encode
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.train.models import load_model, load_tokenizer
from cpift.train.protect import protect

ROWS = [*tiny.rows("reverse", 5, 0), *tiny.rows("double", 3, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, tied, and rows beside it."""
    folder = tiny.base(tmp_path_factory.mktemp("protect") / "model")
    tiny.jsonl(folder.parent / "rows.jsonl", ROWS)
    return folder


def rows_of(model: Path) -> str:
    return str(model.parent / "rows.jsonl")


def gradients(model: Path) -> list[tuple[int, dict[str, np.ndarray]]]:
    """For each row: its trained tokens, and the gradient of transformers' own loss times their number."""
    network, tokenizer = load_model(model), load_tokenizer(model)
    found = []
    for row in ROWS:
        encoded = encode(row, tokenizer)
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        tokens = int((labels[:, 1:] != -100).sum())
        parts = torch.autograd.grad(
            network(input_ids=ids, labels=labels).loss * tokens, [p for _, p in network.named_parameters()]
        )
        names = [name for name, _ in network.named_parameters()]
        found.append((tokens, {n: g.numpy().astype(np.float64) for n, g in zip(names, parts, strict=True)}))
    return found


def best(scores: dict[str, np.ndarray], percent: str) -> plain.Positions:
    """Top per cent of scores, in fp32 as they are kept."""
    return plain.core({n: np.zeros_like(s) for n, s in scores.items()}, scores, percent)


def agreement(region: Region, scores: dict[str, np.ndarray], percent: str) -> float:
    """Jaccard of the region with the top of these scores: sums in another order may swap neighbours."""
    return plain.jaccard(dict(region.positions), best(scores, percent))


def test_fisher_is_the_mean_of_each_row_s_squared_gradient(model: Path) -> None:
    """Not the square of the mean, nor of the mean loss of a row: the rows differ in length."""
    by_row = gradients(model)
    assert len({tokens for tokens, _ in by_row}) > 1
    fisher = {n: np.mean([g[n] ** 2 for _, g in by_row], axis=0) for n in by_row[0][1]}
    found = protect(model, rows=rows_of(model), percent="7").region
    assert agreement(found, fisher, "7") > 0.995
    for wrong in (
        {n: np.mean([g[n] for _, g in by_row], axis=0) ** 2 for n in fisher},
        {n: np.mean([(g[n] / t) ** 2 for t, g in by_row], axis=0) for n in fisher},
    ):
        assert agreement(found, wrong, "7") < 0.95
    everything = np.sort(np.concatenate([f.ravel() for f in fisher.values()]))[::-1]
    assert found.threshold == pytest.approx(everything[found.count - 1], rel=1e-4)
    assert found.statistics["rows"] == len(ROWS)
    assert found.statistics["tokens"] == sum(tokens for tokens, _ in by_row)


def test_magnitude_times_gradient_of_the_mean_loss(model: Path) -> None:
    """|θ·g| with g over all trained tokens."""
    by_row = gradients(model)
    tokens = sum(count for count, _ in by_row)
    weights = plain.load(model)
    scores = {n: np.abs(w * sum(g[n] for _, g in by_row) / tokens) for n, w in weights.items()}
    found = protect(model, rows=rows_of(model), by="magnitude_gradient", percent="7").region
    assert agreement(found, scores, "7") > 0.995
    everything = np.sort(np.concatenate([s.ravel() for s in scores.values()]))[::-1]
    assert found.threshold == pytest.approx(everything[found.count - 1], rel=1e-4)


def test_scores_lie_where_the_files_have_the_weights(tmp_path: Path) -> None:
    """Mixtral's experts are one parameter in memory, and many tensors on disk."""
    folder = zoo.base(tmp_path / "mixtral", "mixtral")
    tiny.jsonl(tmp_path / "rows.jsonl", ROWS[:2])
    found = protect(folder, rows=str(tmp_path / "rows.jsonl"), by="magnitude_gradient", percent="90").region
    weights = plain.load(folder)
    assert set(found.positions) <= set(weights)
    assert any(".experts." in name for name in found.positions)
    assert all(found.shapes[name] == weights[name].shape for name in found.positions)


@pytest.mark.parametrize("percent", ["0.5", "50", "99"])
def test_by_update_it_is_identify_s_region(tmp_path: Path, percent: str) -> None:
    """Bit for bit, with ties, signs, threshold and fingerprints; at 99 % too."""
    base, tuned = family(tmp_path, "llama", tasks=1, quantum=5e-4)
    found = protect(tuned, base=base, percent=percent).region
    wanted = identify(base, {"tuned": tuned}, percent)["tuned"]
    assert found.positions.keys() == wanted.positions.keys()
    assert found.negative is not None
    assert wanted.negative is not None
    for name, positions in wanted.positions.items():
        np.testing.assert_array_equal(found.positions[name], positions)
        np.testing.assert_array_equal(found.negative[name], wanted.negative[name])
    same = ("total", "threshold", "base", "tuned", "percent", "shapes")
    assert [getattr(found, key) for key in same] == [getattr(wanted, key) for key in same]


def test_names_are_the_base_s(tmp_path: Path) -> None:
    """A model saved without the prefix of its base model gives the region that identify gives, fingerprints too."""
    base, tuned = family(tmp_path, "gpt2", tasks=1)
    weights = load_file(tuned / "model.safetensors")
    save_file({n.removeprefix("transformer."): w for n, w in weights.items()}, tuned / "model.safetensors")
    found = protect(tuned, base=base, percent=10).region
    wanted = identify(base, {"tuned": tuned}, 10)["tuned"]
    assert plain.as_set(dict(found.positions)) == plain.as_set(dict(wanted.positions))
    assert (found.base, found.tuned) == (wanted.base, wanted.tuned)
    assert any(name.startswith("transformer.") for name in found.positions)


def columns_by_numpy(scores: dict[str, np.ndarray], limit: int) -> set[tuple[str, int]]:
    """Whole columns by mean score, one list sorted by Python."""
    found = []
    for name in sorted(scores):
        numbers = np.arange(scores[name].size).reshape(scores[name].shape)
        if scores[name].ndim == 1:
            found += [(-float(s), name, [i]) for i, s in enumerate(scores[name])]
            continue
        matrices = scores[name].reshape(-1, *scores[name].shape[-2:])
        for matrix, places in zip(matrices, numbers.reshape(matrices.shape), strict=True):
            found += [
                (-matrix[:, j].mean(dtype=np.float64), name, places[:, j].tolist()) for j in range(matrix.shape[1])
            ]
    chosen: set[tuple[str, int]] = set()
    for _, name, places in sorted(found, key=lambda entry: entry[0]):
        if len(chosen) + len(places) > limit:
            break
        chosen |= {(name, place) for place in places}
    return chosen


def test_columns_are_those_of_numpy(tmp_path: Path) -> None:
    """A matrix, a vector, stacked matrices; whole columns only, and at most k elements."""
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (12, 7), "b.bias": (9,), "c.weight": (3, 5, 4)}
    weights = {n: rng.standard_normal(s).astype(np.float32) * 2 ** rng.integers(-2, 2) for n, s in shapes.items()}
    write(tmp_path / "model", weights)
    total = sum(w.size for w in weights.values())
    for percent in (5, 33, 80, 100):
        region = protect(tmp_path / "model", by="magnitude", unit="column", percent=percent).region
        wanted = columns_by_numpy({n: np.abs(w) for n, w in weights.items()}, percent * total // 100)
        assert plain.as_set(dict(region.positions)) == wanted
        assert region.count <= percent * total // 100
        region.save(tmp_path / "r.safetensors")
        assert Region.load(tmp_path / "r.safetensors").count == region.count


def test_only_and_except(model: Path) -> None:
    """The per cent are of what counts."""
    weights = plain.load(model)
    kept = {n: w for n, w in weights.items() if "mlp" in n and "down" not in n}
    region = protect(model, by="magnitude", percent="90", only=["*mlp*"], exclude=["*down*"]).region
    assert plain.as_set(dict(region.positions)) == plain.as_set(best(kept, "90"))
    assert region.total == sum(w.size for w in kept.values())


def test_positions_without_a_score_are_reported(model: Path) -> None:
    """Tokens that the rows never have give most of the embedding no gradient... but tied, as output, all have one."""
    few = protect(model, rows=rows_of(model), percent="99", only=["*norm*"])
    assert not few.warnings
    folder = model.parent / "zeros"
    write(folder, {"w.weight": np.concatenate([np.zeros((2, 8)), np.ones((2, 8))]).astype(np.float32)})
    (text,) = protect(folder, by="magnitude", percent="75").warnings
    assert text.startswith("only 16 of the 24 positions have a score above zero")


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file loads, and says what it was made by."""
    code, out, err = call(
        capsys,
        "protect",
        model,
        "--rows",
        rows_of(model),
        "--percent",
        5,
        "--unit",
        "column",
        "--out",
        tmp_path / "new/r.st",
    )
    assert (code, err) == (0, "")
    region = Region.load(tmp_path / "new/r.st")
    assert f"{region.count} of {region.total} parameters" in out
    assert "squared gradient of the row's summed loss over 8 rows" in out
    assert (region.statistics["by"], region.statistics["unit"], region.base) == ("fisher", "column", "")


CASES: list[tuple[list[Any], str]] = [
    ([], "give a base"),
    (["--by", "fisher"], "fisher needs rows; give --rows"),
    (["--by", "update"], "update needs a base; give --base"),
    (["--by", "magnitude", "--rows", "ROWS"], "does not use --rows"),
    (["--by", "fishers", "--rows", "ROWS"], "did you mean fisher"),
    (["--rows", "ROWS", "--unit", "row"], "unit: row is not one of element, column"),
    (["--rows", "ROWS", "--percent", "101"], "percent: 101 is not in"),
    (["--rows", "ROWS", "--only", "nothing*"], "matches no parameter"),
    (["--rows", "ROWS", "--max-length", "1"], "no trained token is left"),
    (["--rows", "BAD"], "bad.jsonl"),
    (["--rows", "nowhere.jsonl"], "nowhere.jsonl"),
]


@pytest.mark.parametrize(("arguments", "says"), CASES)
def test_it_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """In one line, and no file is left."""
    bad = tiny.jsonl(tmp_path / "bad.jsonl", [json.dumps({"question": "what?"})])
    known = {"ROWS": rows_of(model), "BAD": str(bad)}
    out = tmp_path / "r.safetensors"
    code, _, err = call(capsys, "protect", model, *[known.get(a, a) for a in arguments], "--out", out)
    assert code == 2
    assert says in err.splitlines()[-1]
    assert not out.exists()
