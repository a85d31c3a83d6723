"""fuse() agrees with the formulas evaluated in float64 by plain numpy."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from checkpoints import CONFIGS, family, write
from safetensors.torch import load_file

from cpift.errors import CpiftError
from cpift.kernels.stored import round_to_bf16
from cpift.method.fuse import fuse
from cpift.method.identify import identify
from cpift.method.region import Region


def arrays(seed: int, near: dict[str, np.ndarray] | None = None, step: float = 0.05) -> dict[str, np.ndarray]:
    """Random tensors, or others near to them; among them a scalar-like one and one of a single element."""
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (37, 11), "b.bias": (19,), "c.one": (1,), "d.weight": (8, 5, 3)}
    made = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return made if near is None else {n: (near[n] + np.float32(step) * a).astype(np.float32) for n, a in made.items()}


def worst(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Greatest error over greatest value, of the worst tensor."""
    return max(float(np.abs(got[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in expected)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, a backbone, three tasks, and their regions of 20 %, which overlap."""
    folder = tmp_path_factory.mktemp("fusion")
    base = arrays(0)
    places = {"base": write(folder / "base", base), "backbone": write(folder / "backbone", arrays(9, base))}
    for i in (1, 2, 3):
        places[f"t{i}"] = write(folder / f"t{i}", arrays(i, base), shards=i)
    for name, region in identify(places["base"], {f"t{i}": places[f"t{i}"] for i in (1, 2, 3)}, "20").items():
        region.save(folder / f"{name}.region.safetensors")
        places[f"{name}.region"] = folder / f"{name}.region.safetensors"
    return places


def both(
    places: dict[str, Path], out: Path, tasks: list[str], backbone: str, regions: bool, **options: Any
) -> tuple[Any, ...]:
    """What cpift writes, its report, and what plain numpy makes of the same files."""
    given = {t: places[f"{t}.region"] for t in tasks} if regions else {}
    report = fuse(
        places["base"], {t: places[t] for t in tasks}, out, backbone=places[backbone], regions=given, **options
    )
    base, loaded = plain.load(places["base"]), [plain.load(places[t]) for t in tasks]
    cores = [plain.core(base, t, "20") if regions else {} for t in loaded]
    return plain.load(out), report, plain.fuse(base, plain.load(places[backbone]), loaded, cores, **options), cores


OPTIONS = list(itertools.product(["slerp", "karcher", "linear"], ["weights", "updates"], ["tensor", "model"]))


@pytest.mark.parametrize(("interpolation", "space", "vector"), OPTIONS)
@pytest.mark.parametrize("backbone", ["backbone", "base"])
def test_agrees_with_the_formula(
    checkpoints: dict[str, Path], tmp_path: Path, interpolation: str, space: str, vector: str, backbone: str
) -> None:
    """Every interpolation, in both spaces, per tensor and over the model, with three tasks and with one, to 1e-6."""
    for tasks in (["t1", "t2", "t3"], ["t2"]):
        got, _, expected, _ = both(
            checkpoints, tmp_path / "-".join(tasks), tasks, backbone, True,
            interpolation=interpolation, space=space, vector=vector,
        )  # fmt: skip
        assert worst(got, expected) < 1e-6


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("space", ["weights", "updates"])
@pytest.mark.parametrize("backbone", ["backbone", "base"])
def test_a_fixed_weight(checkpoints: dict[str, Path], tmp_path: Path, weight: float, space: str, backbone: str) -> None:
    """ω the same for every task; also where the backbone's update is zero."""
    got, _, expected, _ = both(checkpoints, tmp_path / "o", ["t1", "t2"], backbone, True, weight=weight, space=space)
    assert worst(got, expected) < 1e-6


@pytest.mark.parametrize("overlap", ["largest", "order", "mean"])
def test_overlap_rules_and_counts(checkpoints: dict[str, Path], tmp_path: Path, overlap: str) -> None:
    """Contested positions take the value the rule says; the counts of core, contested and won positions are exact."""
    got, report, expected, cores = both(
        checkpoints, tmp_path / "o", ["t1", "t2", "t3"], "backbone", True, overlap=overlap
    )
    assert worst(got, expected) < 1e-6
    sets = [plain.as_set(core) for core in cores]
    union = set().union(*sets)
    assert report["core"] == len(union)
    assert report["contested"] == sum(sum(p in s for s in sets) > 1 for p in union)
    if overlap != "mean":
        assert sum(report["won"].values()) == len(union)
        for name, i in union:  # transplanted to the bit
            holders = [plain.load(checkpoints[f"t{t + 1}"])[name].ravel()[i] for t in range(3) if (name, i) in sets[t]]
            assert got[name].ravel()[i] in holders


@pytest.mark.parametrize("space", ["weights", "updates"])
def test_weight_zero_is_the_backbone_and_weight_one_the_task(
    checkpoints: dict[str, Path], tmp_path: Path, space: str
) -> None:
    """Bit for bit: outside the regions with ω = 0, everywhere with ω = 1 and one task."""
    got, _, _, cores = both(checkpoints, tmp_path / "zero", ["t1", "t2"], "backbone", True, weight=0.0, space=space)
    backbone = plain.load(checkpoints["backbone"])
    for name, values in got.items():
        free = np.ones(values.size, bool)
        for core in cores:
            free[core.get(name, np.empty(0, int))] = False
        assert np.array_equal(values.ravel()[free].view(np.int32), backbone[name].ravel()[free].view(np.int32))
    got, _, _, _ = both(checkpoints, tmp_path / "one", ["t2"], "backbone", False, weight=1.0, space=space)
    task = plain.load(checkpoints["t2"])
    assert all(np.array_equal(got[n].view(np.int32), task[n].view(np.int32)) for n in task)


def test_equal_models_give_that_model(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Fusing a model with itself changes nothing beyond rounding."""
    t1 = checkpoints["t1"]
    for how in ("slerp", "karcher", "linear"):
        fuse(checkpoints["base"], {"x": t1, "y": t1}, tmp_path / how, backbone=t1, interpolation=how)  # type: ignore[arg-type]
        assert worst(plain.load(tmp_path / how), plain.load(t1)) < 1e-7


def test_nearly_parallel_weights(tmp_path: Path) -> None:
    """Angles down to 1e-5 are right to 1e-6, across the border to the linear form; weights alone could not tell."""
    base = arrays(0)
    places = {"base": write(tmp_path / "base", base)}
    for step in (3e-3, 3e-4, 3e-5):
        task = arrays(1, base, step)
        places["t1"] = write(tmp_path / f"t{step}", task)
        report = fuse(places["base"], {"t1": places["t1"]}, tmp_path / f"o{step}")
        a, b = (x["a.weight"].astype(np.float64).ravel() for x in (base, task))
        ahat, bhat = a / np.linalg.norm(a), b / np.linalg.norm(b)
        angle = 2 * np.arctan2(np.linalg.norm(ahat - bhat), np.linalg.norm(ahat + bhat))
        assert report["tensors"]["a.weight"]["angles"][0] == pytest.approx(angle, rel=1e-6)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_output_dtype_and_rounding(tmp_path: Path, dtype: str | None) -> None:
    """By default the widest of the inputs; always the float64 result, rounded once."""
    base = {n: torch.from_numpy(a) for n, a in arrays(0).items()}
    task = {
        n: (t + 0.05 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))).bfloat16()
        for n, t in base.items()
    }
    places = write(tmp_path / "b", {n: t.bfloat16() for n, t in base.items()}), write(tmp_path / "t", task)
    fuse(places[0], {"t": places[1]}, tmp_path / "o", dtype=dtype)
    got = load_file(tmp_path / "o/model.safetensors")
    assert {t.dtype for t in got.values()} == {getattr(torch, dtype or "bfloat16")}
    expected = plain.fuse(plain.load(places[0]), plain.load(places[0]), [plain.load(places[1])], [{}])
    step = {"float32": 2.0**-24, "float16": 2.0**-11}.get(dtype or "", 2.0**-8)
    for name, value in expected.items():
        assert np.all(np.abs(got[name].double().numpy() - value) <= np.abs(value) * step * (1 + 1e-6) + 1e-7)


def test_bf16_is_rounded_once() -> None:
    """To nearest, ties to even, from float64: checked with exact fractions, beside and at the ties."""
    rng = np.random.default_rng(0)
    ties = (
        (rng.standard_normal(500).astype(np.float32).view(np.uint32) & 0xFFFF0000 | 0x8000)
        .view(np.float32)
        .astype(np.float64)
    )
    values = np.concatenate([ties, ties * (1 + 2.0**-40), ties * (1 - 2.0**-40), rng.standard_normal(500)])
    got = np.empty(len(values), np.uint16)
    round_to_bf16(values, got)
    for value, bits in zip(values, got, strict=True):
        chosen = Fraction(float(np.array(int(bits) << 16, np.uint32).view(np.float32)))
        others = [Fraction(float(np.array((int(bits) + d) << 16, np.uint32).view(np.float32))) for d in (-1, 1)]
        gap = abs(chosen - Fraction(value))
        assert all(
            gap < abs(o - Fraction(value)) or (gap == abs(o - Fraction(value)) and bits % 2 == 0) for o in others
        )


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_output_loads(tmp_path: Path, kind: str) -> None:
    """Every architecture, in shards, tied or not: transformers loads it, and its logits are those of the weights."""
    from transformers import AutoModelForCausalLM

    base, *tasks = family(tmp_path, kind)
    fuse(base, {t.name: t for t in tasks}, tmp_path / "out", max_shard_size="20KB")
    loaded, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = plain.fuse(plain.load(base), plain.load(base), [plain.load(t) for t in tasks], [{}, {}])
    state = loaded.state_dict()
    assert max(float(np.abs(state[n].numpy() - v).max()) for n, v in expected.items()) < 1e-6
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_threads_change_no_byte(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Also over several blocks."""
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal(2_300_000).astype(np.float32)}
    places = [
        write(tmp_path / str(i), {"w": base["w"] + np.float32(i) * rng.standard_normal(2_300_000).astype(np.float32)})
        for i in range(3)
    ]
    files = []
    for threads in (1, 3):
        fuse(places[0], {"a": places[1], "b": places[2]}, tmp_path / f"o{threads}", threads=threads)
        files.append((tmp_path / f"o{threads}/model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_a_region_of_another_base_or_checkpoint_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """By fingerprint, and nothing is written."""
    tasks = {"t1": checkpoints["t1"], "t2": checkpoints["t2"]}
    with pytest.raises(CpiftError, match="another base"):
        fuse(checkpoints["backbone"], tasks, tmp_path / "o", regions={"t1": checkpoints["t1.region"]})
    with pytest.raises(CpiftError, match="another checkpoint"):
        fuse(checkpoints["base"], tasks, tmp_path / "o", regions={"t1": checkpoints["t2.region"]})
    with pytest.raises(CpiftError, match="does not fit"):
        fuse(checkpoints["base"], tasks, tmp_path / "o", regions={"t1": Region({"nope": np.array([0], np.int32)}, 9)})
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_killed_and_started_again(tmp_path: Path, kills: int) -> None:
    """SIGKILL at some moments: the end is the same bytes, whole shards are not written again, no folder is half there."""
    rng = np.random.default_rng(0)
    base = {f"l{i}.w": rng.standard_normal(700_000).astype(np.float32) for i in range(12)}
    tasks = [{n: a + rng.standard_normal(a.shape).astype(np.float32) for n, a in base.items()} for _ in range(2)]
    places = [write(tmp_path / f"m{i}", arrays) for i, arrays in enumerate([base, *tasks])]
    command = [
        sys.executable,
        "-m",
        "cpift.cli.main",
        "fuse",
        "--base",
        str(places[0]),
        f"--tuned=a={places[1]}",
        f"--tuned=b={places[2]}",
    ]
    command += ["--max-shard-size", "3MB"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    moments, seen = random.Random(0), {}
    for _ in range(kills):
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(seen) + moments.randint(0, 2)
        ends = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < ends and len(list(partial.glob("*.safetensors"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {f.name: f.stat().st_mtime_ns for f in partial.glob("*.safetensors")}
        assert all(now.get(name) == written for name, written in seen.items() if not out.exists())
        seen = now or seen
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))
    for file in out.iterdir():
        if file.suffix == ".safetensors" or file.name.endswith("index.json"):
            assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
            if file.name in seen:
                assert file.stat().st_mtime_ns == seen[file.name]
    assert not partial.exists()
    assert json.loads((out / "fusion.json").read_text())["total"] == 12 * 700_000
