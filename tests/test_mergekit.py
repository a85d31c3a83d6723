"""mergekit's YAML, read and written: against plain numpy, and refused where fuse would do something else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import plain
import pytest
import tiny
import yaml
from checkpoints import write
from safetensors.numpy import load_file, save_file
from test_hub import call
from typer.testing import CliRunner

from cpift.checkpoint.gguf import SCRIPT, VARIABLE, write_gguf
from cpift.cli import main as cli
from cpift.errors import CpiftError
from cpift.method.fuse import fuse
from cpift.method.mergekit import read_merge
from cpift.method.mergekit_writing import write_merge

Weights = dict[str, np.ndarray]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and three fine-tuned checkpoints."""
    rng = np.random.default_rng(0)
    base = {"a.weight": rng.standard_normal((20, 30)), "b.bias": rng.standard_normal(7)}
    made = [base, *({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in base.items()} for _ in range(3))]
    return [write(tmp_path / f"m{i}", {k: v.astype(np.float32) for k, v in w.items()}) for i, w in enumerate(made)]


def weights(place: Path) -> Weights:
    return {name: value.astype(np.float64) for name, value in load_file(place / "model.safetensors").items()}


def summed(shares: list[float], places: list[Path]) -> Weights:
    loaded = [weights(place) for place in places]
    return {name: sum(s * w[name] for s, w in zip(shares, loaded, strict=True)) for name in loaded[0]}


def close(place: Path, expected: Weights) -> None:
    found = weights(place)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)


def merged(file: Path, text: object, out: Path) -> Path:
    file.write_text(yaml.safe_dump(text))
    call("fuse", "--from-mergekit", file, "--out", out)
    return out


def of(model: Path, weight: float) -> dict[str, Any]:
    return {"model": str(model), "parameters": {"weight": weight}}


def test_linear_is_the_weighted_mean(models: list[Path], tmp_path: Path) -> None:
    """Weights are divided by their sum, as mergekit does by default; a weight may stand for all models."""
    a, b, c = models[1:]
    text = {"merge_method": "linear", "models": [of(a, 1.0), of(b, 2.0), of(c, 5.0)], "dtype": "float32"}
    close(merged(tmp_path / "1.yaml", text, tmp_path / "1"), summed([1 / 8, 2 / 8, 5 / 8], [a, b, c]))
    text = {"merge_method": "linear", "models": [{"model": str(m)} for m in (a, b)], "parameters": {"weight": 1}}
    close(merged(tmp_path / "2.yaml", text, tmp_path / "2"), summed([0.5, 0.5], [a, b]))
    exact = {"merge_method": "linear", "models": [of(a, 1.5), of(b, -0.5)], "parameters": {"normalize": False}}
    close(merged(tmp_path / "3.yaml", exact, tmp_path / "3"), summed([1.5, -0.5], [a, b]))


def test_task_arithmetic_adds_each_update_times_its_weight(models: list[Path], tmp_path: Path) -> None:
    """With mergekit's ``lambda`` on all, and its ``normalize``; the base among the models takes no part."""
    base, a, b, _ = models
    text = {"merge_method": "task_arithmetic", "base_model": str(base), "parameters": {"lambda": 0.5},
            "models": [{"model": str(base)}, of(a, 0.6), of(b, 1.4)]}  # fmt: skip
    close(merged(tmp_path / "1.yaml", text, tmp_path / "1"), summed([0.0, 0.3, 0.7], [base, a, b]))
    text["parameters"] = {"normalize": True}
    close(merged(tmp_path / "2.yaml", text, tmp_path / "2"), summed([0.0, 0.3, 0.7], [base, a, b]))
    text["parameters"] = {}
    close(merged(tmp_path / "3.yaml", text, tmp_path / "3"), summed([-1.0, 0.6, 1.4], [base, a, b]))


def test_slerp_is_the_arc_from_the_base_model(models: list[Path], tmp_path: Path) -> None:
    """Also written as one slice of all layers, as the examples of mergekit have it."""
    base, a = models[:2]
    expected = {name: plain.slerp(weights(base)[name], weights(a)[name], 0.3) for name in weights(base)}
    text: dict[str, Any] = {"merge_method": "slerp", "base_model": str(base), "parameters": {"t": [{"value": 0.3}]}}
    both = [{"model": str(base)}, {"model": {"model": {"path": str(a)}}}]
    close(merged(tmp_path / "1.yaml", {**text, "models": both}, tmp_path / "1"), expected)
    (base / "config.json").write_text('{"num_hidden_layers": 2}')
    (a / "config.json").write_text('{"num_hidden_layers": 2}')
    sources = [{"model": str(m), "layer_range": [0, 2]} for m in (a, base)]
    text["slices"] = [{"sources": sources}]
    close(merged(tmp_path / "2.yaml", text, tmp_path / "2"), expected)
    sources[0]["layer_range"] = [0, 1]
    with pytest.raises(CpiftError, match=r"slices: \[0, 1\] of .*m1, which has 2 layers; write models"):
        merged(tmp_path / "3.yaml", text, tmp_path / "3")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_an_adapter_on_the_base_is_a_model(tmp_path: Path) -> None:
    """``base+adapter``: the same as fuse with the adapter's folder; on another model it is refused."""
    base = adapters.base(tmp_path / "base")
    for i in range(2):
        adapters.adapter(tmp_path / f"a{i}", base, seed=i)
    text = {"merge_method": "linear", "models": [of(Path(f"{base}+{tmp_path}/a{i}"), 1.0 + i) for i in range(2)]}
    merged(tmp_path / "m.yaml", text, tmp_path / "out")
    tuned = {f"a{i}": tmp_path / f"a{i}" for i in range(2)}
    fuse(base, tuned, tmp_path / "same", interpolation="linear", weight={"a0": 1 / 3, "a1": 2 / 3})
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "same/model.safetensors").read_bytes()
    text["models"].append(of(Path("other+more"), 1.0))
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(CpiftError, match="adapters must be on the base, and these are on others"):
        read_merge(tmp_path / "m.yaml")


TWO = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 2}}]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"merge_method": "ties"}, "merge_method: ties: drops small updates and elects a sign"),
    ({"merge_method": "passthrough"}, "merge_method: passthrough: fuse reads linear, task_arithmetic, slerp"),
    ({"merge_method": "linear", "modules": {}}, "modules: fuse has nothing like it"),
    ({"merge_method": "linear", "parameters": {"normalize": False}}, "normalize: false, and the weights sum to 3"),
    ({"merge_method": "linear", "parameters": {"density": 0.5}}, "parameters.density: linear of fuse has no such"),
    ({"merge_method": "linear", "tokenizer_source": "union"}, "tokenizer_source: leave it out, and give fuse --vocab"),
    ({"merge_method": "linear", "dtype": "int8"}, "dtype: int8 is not one of"),
    ({"merge_method": "linear", "models": [TWO[0], {"model": "b"}]}, "parameters.weight: is missing"),
    ({"merge_method": "linear", "models": [TWO[0], {"model": "b", "parameters": {"weight": [0, 1]}}]}, "by layer or tensor"),
    ({"merge_method": "linear", "models": TWO[:1]}, "models: a merge needs two models at least"),
    ({"merge_method": "linear", "models": [{"model": "a+b+c"}]}, "fuse takes one adapter on a model"),
    ({"merge_method": "task_arithmetic"}, "base_model: is missing; task_arithmetic needs it"),
    ({"merge_method": "task_arithmetic", "base_model": "x+y"}, "base_model: has an adapter; merge it first: cpift export"),
    ({"merge_method": "slerp", "base_model": "c", "parameters": {"t": 0.5}}, "models: slerp is between base_model and one"),
    ({"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": 2}}, "t: 2 is not in"),
    ({"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}],
      "parameters": {"t": [{"filter": "mlp", "value": 0.5}, {"value": 1}]}}, "parameters.t: .*takes one number"),
    ({"merge_method": "linear", "models": None, "slices": [1, 2]}, "slices: fuse takes whole models"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_fuse_would_do_otherwise_is_refused_by_its_key(tmp_path: Path, text: dict[str, Any], words: str) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump({"models": TWO, **text}))
    with pytest.raises(CpiftError, match=words) as caught:
        read_merge(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_is_no_merge_and_options_beside_it_end_in_one_line(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    for file, words in (("x.yaml", "cannot be read"), ("none.yaml", "cannot be read")):
        with pytest.raises(CpiftError, match=words):
            read_merge(tmp_path / file)
    (tmp_path / "x.yaml").write_text("a: 1")
    with pytest.raises(CpiftError, match="is no merge of mergekit"):
        read_merge(tmp_path / "x.yaml")
    invoke = CliRunner().invoke
    command = [
        "fuse",
        "--from-mergekit",
        str(tmp_path / "x.yaml"),
        "--out",
        str(tmp_path / "o"),
        "--base",
        str(models[0]),
    ]
    with pytest.raises(CpiftError, match="says what --base would; leave one of them out"):
        invoke(cli.app, command, catch_exceptions=False)
    with pytest.raises(CpiftError, match="needs --base and --tuned, or --from-mergekit"):
        invoke(cli.app, ["fuse", "--out", str(tmp_path / "o")], catch_exceptions=False)


WAYS: list[dict[str, Any]] = [
    {"interpolation": "linear"},
    {"interpolation": "linear", "space": "updates"},
    {"interpolation": "linear", "weight": 0.25},
    {"interpolation": "linear", "weight": {"a": 0.7, "b": 0.5}},
    {"interpolation": "sum", "weight": 0.5},
    {"interpolation": "sum", "weight": {"a": 0.2, "b": 1.5}},
    {"interpolation": "linear", "backbone": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_written_gives_the_same_when_it_is_read(
    models: list[Path], tmp_path: Path, way: dict[str, Any]
) -> None:
    """fuse's own result, and that of the YAML that it writes of itself."""
    base, a, b, c = map(str, models)
    options = {**way, "backbone": c if way.pop("backbone", False) else None}
    tuned = {"a": a, "b": b}
    fuse(base, tuned, tmp_path / "own", **options)
    (tmp_path / "m.yaml").write_text(write_merge(base, tuned, **options))
    call("fuse", "--from-mergekit", tmp_path / "m.yaml", "--out", tmp_path / "again")
    close(tmp_path / "again", weights(tmp_path / "own"))


def test_what_mergekit_cannot_say_is_refused_before_anything_is_fused(models: list[Path], tmp_path: Path) -> None:
    """Core regions, and one SLERP after the other; a weight that lacks a task."""
    base, a, b, _ = map(str, models)
    with pytest.raises(CpiftError, match="transplants no core regions"):
        write_merge(base, {"a": a}, regions=True)
    command = ["fuse", "--base", base, "--tuned", f"a={a}", "--tuned", f"b={b}", "--out", str(tmp_path / "out")]
    with pytest.raises(CpiftError, match="this is none of them"):
        CliRunner().invoke(cli.app, [*command, "--write-mergekit", str(tmp_path / "w.yaml")], catch_exceptions=False)
    with pytest.raises(CpiftError, match="slerp takes no weight for each task; linear, sum do"):
        CliRunner().invoke(cli.app, [*command, "--weight", "a=0.5,b=0.2"], catch_exceptions=False)
    for more in ([], ["--write-mergekit", str(tmp_path / "w.yaml")]):
        with pytest.raises(CpiftError, match="must hold each task once, and differs in b"):
            CliRunner().invoke(
                cli.app, [*command, "--interpolation", "linear", "--weight", "a=0.5", *more], catch_exceptions=False
            )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "w.yaml").exists()
    call(*command, "--interpolation", "sum", "--weight", "a=0.5,b=0.2", "--write-mergekit", tmp_path / "w.yaml")
    close(tmp_path / "out", summed([0.3, 0.5, 0.2], models[:3]))
    assert read_merge(tmp_path / "w.yaml").weight == {"m1": 0.5, "m2": 0.2}


MERGEKIT = shutil.which(os.environ.get("CPIFT_MERGEKIT", "mergekit-yaml"))


@pytest.mark.long
@pytest.mark.skipif(MERGEKIT is None, reason="no mergekit-yaml; CPIFT_MERGEKIT names one")
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "slerp, nearly parallel"])
def test_mergekit_itself_gives_the_same(tmp_path: Path, method: str) -> None:
    """In fp32, beside the largest update; slerp of nearly parallel models within the angle of its straight line."""
    places = [tiny.base(tmp_path / f"m{i}", seed=i) for i in range(3)]
    base, a, b = places
    if "nearly" in method:
        start, end = load_file(base / "model.safetensors"), load_file(a / "model.safetensors")
        save_file({n: v + np.float32(0.02) * (end[n] - v) for n, v in start.items()}, a / "model.safetensors")
    name = method.partition(",")[0]
    text: dict[str, Any] = {"merge_method": name, "models": [of(a, 0.75), of(b, 0.5)], "dtype": "float32"}
    if name == "slerp":
        text = {**text, "models": [{"model": str(base)}, {"model": str(a)}], "parameters": {"t": 0.3}}
    if name != "linear":
        text["base_model"] = str(base)
    merged(tmp_path / "m.yaml", text, tmp_path / "ours")
    command = [str(MERGEKIT), str(tmp_path / "m.yaml"), str(tmp_path / "theirs"), "--no-copy-tokenizer", "--quiet"]
    subprocess.run(command, check=True)
    theirs, start, tuned = (weights(place) for place in (tmp_path / "theirs", base, a))
    moved = max(np.abs(tuned[n] - v).max() for n, v in start.items())
    far = max(np.abs(v - theirs[n]).max() for n, v in weights(tmp_path / "ours").items()) / moved
    print(f"{method}: largest difference {far:.1e} of the largest update")
    assert far < (2e-3 if "nearly" in method else 1e-5)


def test_gguf_is_written_by_the_converter_of_llama_cpp_or_the_lines_that_do_it(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the script: it gets the model and the file; what it says where it fails is passed on."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "m.gguf"
    lines = rf"git clone .*llama\.cpp && pip install .*; python llama.cpp/{SCRIPT} {models[0]} --outfile {out}"
    with pytest.raises(CpiftError, match=lines):
        write_gguf(models[0], out)
    script = tmp_path / "llama" / SCRIPT
    script.parent.mkdir()
    script.write_text("import sys, shutil; shutil.copy(sys.argv[1] + '/model.safetensors', sys.argv[3])")
    monkeypatch.setenv(VARIABLE, str(script.parent))
    call("export", models[0], "--format", "gguf", "--out", out)
    assert out.read_bytes() == (models[0] / "model.safetensors").read_bytes()
    with pytest.raises(CpiftError, match="exists; name another file"):
        write_gguf(models[0], out)
    script.write_text("raise SystemExit('unknown architecture')")
    with pytest.raises(CpiftError, match="converter failed: unknown architecture"):
        write_gguf(models[0], tmp_path / "other.gguf")
    assert not list(tmp_path.glob(".*.partial"))
