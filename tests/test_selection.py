"""identify() agrees, position for position, with plain numpy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from checkpoints import CONFIGS, family, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import call

from cpift.checkpoint.chunks import chunks
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Block, fingerprint
from cpift.errors import CpiftError
from cpift.method.identify import core_count, identify
from cpift.method.region import Region

QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(region: Region, expected: plain.Positions) -> bool:
    return sorted(region.positions) == sorted(expected) and all(
        np.array_equal(region.positions[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_agrees_with_numpy_on_every_architecture(tmp_path: Path, kind: str, shard: str) -> None:
    """Sharded or not, tied or not, with biases or Conv1D; ties included, for several tasks in one pass."""
    base, *tasks = family(tmp_path, kind, shard=shard, quantum=2.0**-11)
    found = identify(base, {path.name: path for path in tasks}, "3.7")
    for path in tasks:
        region = found[path.name]
        expected = plain.core(plain.load(base), plain.load(path), "3.7")
        assert same(region, expected)
        assert region.count == core_count("3.7", sum(w.size for w in plain.load(base).values()))
        for name, positions in region.positions.items():
            update = plain.load(path)[name].ravel()[positions] - plain.load(base)[name].ravel()[positions]
            assert region.negative is not None
            assert np.array_equal(region.negative[name], update < 0)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1000, 2**20])
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_change_nothing(tmp_path: Path, chunk: int, threads: int) -> None:
    """Any chunk, one element to a whole tensor, and any number of threads: the same region and fingerprints."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in [("b", (13, 7)), ("a", (100,)), ("c", (1,))]}
    moved = {n: a + rng.integers(-3, 4, a.shape).astype(np.float32) for n, a in arrays.items()}
    base, task = write(tmp_path / "base", arrays), write(tmp_path / "task", moved, shards=2)
    found = identify(base, {"t": task}, "10", chunk=chunk, threads=threads)["t"]
    usual = identify(base, {"t": task}, "10")["t"]
    assert same(found, plain.core(plain.load(base), plain.load(task), "10"))
    assert (found.base, found.tuned, found.statistics) == (usual.base, usual.tuned, usual.statistics)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], dict[str, plain.Positions]]:
    """A base and a task in each type, with sizes at the borders of strips and groups, ties among them; and their cores."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("mixed")
    sizes = {"a": (3, 5000), "b": (2049,), "c": (63,), "d": (65,), "e": (2 * 2048 + 1,), "f": (1,)}
    base = {n: torch.from_numpy(rng.standard_normal(s).astype(np.float32)).bfloat16() for n, s in sizes.items()}
    place = write(folder / "base", base)
    tasks = {}
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        moved = {
            n: (t.double() + torch.from_numpy(rng.integers(-40, 41, t.shape)) / 64).to(kind) for n, t in base.items()
        }
        tasks[str(kind)] = write(folder / str(kind), moved, shards=2)
    return place, tasks, {n: plain.core(plain.load(place), plain.load(t), "3.1") for n, t in tasks.items()}


@pytest.mark.parametrize("chunk", [33, 64, 2047, 2048, 2049, 6144, None])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_type_and_chunk_agrees_with_numpy(
    mixed: tuple[Path, dict[str, Path], dict[str, plain.Positions]], chunk: int | None, threads: int
) -> None:
    """Tasks of four types beside one base, in one read: positions, signs, zero updates and fingerprints."""
    base, tasks, expected = mixed
    found = identify(base, tasks, "3.1", chunk=chunk, threads=threads)
    for name, task in tasks.items():
        region, before, after = found[name], plain.load(base), plain.load(task)
        assert same(region, expected[name])
        updates = {n: np.float32(after[n]) - np.float32(before[n]) for n in before}
        assert region.statistics["zero_share"] == sum(int((u == 0).sum()) for u in updates.values()) / region.total
        assert region.negative is not None
        for n, places in region.positions.items():
            assert np.array_equal(region.negative[n], updates[n].ravel()[places] < 0)
        assert region.tuned == fingerprint(open_checkpoint(task))


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """A line that names it, where a mapped file would end the process."""
    place = write(tmp_path, {"w": np.zeros(5000, np.float32)})
    model = open_checkpoint(place)
    (file,) = model.files
    os.truncate(file, 9000)
    with pytest.raises(CpiftError, match=f"{file.name}: w cannot be read"):
        list(chunks([model], Block("w", 0, 5000), 1000))


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, 0.5, 2.0**-126, 3.0])


@QUICK
@given(
    data=st.lists(st.tuples(st.sampled_from("abc"), VALUES, VALUES), min_size=1, max_size=60),
    percent=st.sampled_from(["0.5", "1", "10", "33.3", "50", "99.9", "100"]),
    chunk=st.integers(1, 9),
)
def test_ties_zeros_and_subnormals(
    tmp_path_factory: pytest.TempPathFactory, data: list, percent: str, chunk: int
) -> None:
    """Exactly k positions whatever the updates are: equal, zero, subnormal, of negative zero."""
    folder = tmp_path_factory.mktemp("p")
    sides = [{n: np.array([d[i] for d in data if d[0] == n], np.float32) for n in {d[0] for d in data}} for i in (1, 2)]
    base, task = write(folder / "base", sides[0]), write(folder / "task", sides[1])
    found = identify(base, {"t": task}, percent, chunk=chunk)["t"]
    assert same(found, plain.core(sides[0], sides[1], percent))


@pytest.mark.parametrize("spread", [3, 1000, 2**30], ids=["many ties", "some ties", "few ties"])
def test_several_blocks_with_ties_across_their_borders(tmp_path: Path, spread: int) -> None:
    """Tensors of more than a block: candidates are compacted several times, and spilled, with the same result."""
    rng = np.random.default_rng(1)
    base = {n: np.zeros(s, np.float32) for n, s in [("a", 2_500_000), ("b", (1111, 1013))]}
    task = {n: rng.integers(0, spread, a.shape).astype(np.float32) for n, a in base.items()}
    places = write(tmp_path / "base", base), write(tmp_path / "task", task)
    expected = plain.core(base, task, "0.7")
    in_memory = identify(places[0], {"t": places[1]}, "0.7")["t"]
    spilled = identify(places[0], {"t": places[1]}, "0.7", max_memory=1)["t"]
    assert same(in_memory, expected)
    assert same(spilled, expected)
    assert spilled.statistics["candidates_in"] == "scratch file"
    assert in_memory.statistics["candidate_bytes"] <= 16 * in_memory.count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("both", [True, False])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype, both: bool) -> None:
    """bf16, fp16 and fp64, in both checkpoints or in one: |Δ| is taken in fp32 from the stored values."""
    torch.manual_seed(0)
    base = {"w": torch.randn(50, 30), "v": torch.randn(17)}
    task = {n: (t + 0.01 * torch.randn(t.shape)).to(dtype) for n, t in base.items()}
    base = {n: t.to(dtype) if both else t for n, t in base.items()}
    places = write(tmp_path / "base", base), write(tmp_path / "task", task)
    found = identify(places[0], {"t": places[1]}, "5")["t"]
    assert same(found, plain.core(plain.load(places[0]), plain.load(places[1]), "5"))
    zeros = sum(int((task[n].float() == base[n].float()).sum()) for n in base)
    assert found.statistics["zero_share"] == pytest.approx(zeros / 1517)


def test_nothing_and_everything(tmp_path: Path) -> None:
    """k = 0 is an empty region, whose overlap with another is 0; k = D is every position; equal updates go by position."""
    base, task = (
        write(tmp_path / "b", {"w": np.zeros(40, np.float32)}),
        write(tmp_path / "t", {"w": np.ones(40, np.float32)}),
    )
    empty = identify(base, {"t": task}, "1")["t"]
    assert empty.count == 0
    assert empty.jaccard(empty) == 0.0
    assert identify(base, {"t": task}, 100)["t"].positions["w"].tolist() == list(range(40))
    assert identify(base, {"t": task}, 10)["t"].positions["w"].tolist() == [0, 1, 2, 3]
    assert identify(base, {"t": base}, 10)["t"].positions["w"].tolist() == [0, 1, 2, 3]


def test_a_tied_pair_counts_once(tmp_path: Path) -> None:
    """A pair stored twice counts once, under the input embedding's name, and has the fingerprint of one stored once."""
    rng = np.random.default_rng(0)
    once = {
        "model.embed_tokens.weight": rng.standard_normal((20, 4)).astype(np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }
    moved = {n: a + rng.standard_normal(a.shape).astype(np.float32) for n, a in once.items()}
    tied = {"tie_word_embeddings": True}
    places = []
    for i, arrays in enumerate((once, moved)):
        twice = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
        places += [write(tmp_path / f"once{i}", arrays, config=tied), write(tmp_path / f"twice{i}", twice, config=tied)]
    a = identify(places[0], {"t": places[2]}, "20")["t"]
    b = identify(places[1], {"t": places[3]}, "20")["t"]
    assert a.total == b.total == 84
    assert same(a, dict(b.positions))
    assert (a.base, a.tuned) == (b.base, b.tuned)


def test_excluded_parameters_do_not_count(tmp_path: Path) -> None:
    """What a pattern names is neither in D nor in the region; a pattern that names nothing is refused."""
    base, task = family(tmp_path, "llama", tasks=1)
    found = identify(base, {"t": task}, "2", exclude=["*embed*", "*norm*"])["t"]
    left = {n: w for n, w in plain.load(base).items() if "embed" not in n and "norm" not in n}
    assert found.total == sum(w.size for w in left.values())
    assert same(found, plain.core(left, plain.load(task), "2"))
    with pytest.raises(CpiftError, match="matches no parameter"):
        identify(base, {"t": task}, "2", exclude=["*nothing*"])


def test_the_command_counts_what_is_included_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, task = family(tmp_path, "llama", tasks=1)
    arguments = ["--base", base, "--tuned", f"t={task}", "--percent", "2", "--out", tmp_path / "r"]
    patterns = ["--include", "*mlp*", "--include", "*q_proj*", "--exclude", "*up_proj*"]
    assert call(capsys, "identify", *arguments, *patterns)[0] == 0
    wanted = {n for n in plain.load(base) if ("mlp" in n and "up_proj" not in n) or "q_proj" in n}
    found = Region.load(tmp_path / "r/t.region.safetensors")
    left = {n: w for n, w in plain.load(base).items() if n in wanted}
    assert found.total == sum(w.size for w in left.values())
    assert same(found, plain.core(left, plain.load(task), "2"))


@pytest.mark.parametrize("percent", ["0", "-1", "100.1", "nan", "1e", 0, 101])
def test_percent_out_of_range_is_refused(tmp_path: Path, percent: str) -> None:
    """0 < p <= 100."""
    base = write(tmp_path, {"w": np.zeros(4, np.float32)})
    with pytest.raises(CpiftError, match="percent"):
        identify(base, {"t": base}, percent)


@pytest.mark.parametrize(
    ("percent", "total", "expected"), [("0.1", 30000, 30), ("0.3", 1000, 3), (0.7, 1000, 7), ("33.3", 1000, 333)]
)
def test_the_percent_is_the_decimal_written(percent: str | float, total: int, expected: int) -> None:
    """0.1 % of 30,000 is 30, although the nearest binary fraction is another number."""
    assert core_count(percent, total) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["base", "task"])
@pytest.mark.parametrize("percent", ["1", "100"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, bad: float, side: str, percent: str) -> None:
    """NaN or infinite: the checkpoint and the tensor are named, for an empty region, too."""
    arrays = {"v": np.ones(9, np.float32), "w": np.ones(9, np.float32)}
    broken = {"v": arrays["v"], "w": np.array([1, 1, bad, 1, 1, 1, 1, 1, 1], np.float32)}
    sides = {"base": arrays, "task": arrays, side: broken}
    base, task = write(tmp_path / "base", sides["base"]), write(tmp_path / "task", sides["task"])
    with pytest.raises(CpiftError, match=f"{side}: w holds NaN or infinite"):
        identify(base, {"t": task}, percent)


def test_a_first_bound_that_was_guessed_too_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that misleads costs a second read of that checkpoint, and changes nothing."""
    from cpift.method import identify as selection

    rng = np.random.default_rng(0)
    base = {"w": np.zeros(300_000, np.float32)}
    sides = [{"w": rng.standard_normal(300_000).astype(np.float32)} for _ in range(2)]
    sides[1]["w"][:4096] *= 1000  # the sample sees these only
    places = [write(tmp_path / str(i), arrays) for i, arrays in enumerate([base, *sides])]
    monkeypatch.setattr(selection, "_SAMPLED", 4096)
    monkeypatch.setattr(selection, "_WINDOW", 4096)
    found = identify(places[0], {"a": places[1], "b": places[2]}, "10")
    assert [found[n].statistics["reads"] for n in "ab"] == [1, 2]
    for name, arrays in zip("ab", sides, strict=True):
        assert same(found[name], plain.core(base, arrays, "10"))
