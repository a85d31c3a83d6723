"""``cpift patch``: the same bits in any order, the base's bits once all are off, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write
from safetensors.torch import load_file, save_file
from tiny_run import call

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.errors import CpiftError
from cpift.method.apply_patch import apply_patches, carried_patches, remove_patches
from cpift.method.patch import Patch, make_patch
from cpift.method.region import Region

SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "lm_head.weight": (40, 8),
    "model.norm.weight": (8,),
    "z.weight": (30, 20),
}
DTYPES = {"model.norm.weight": torch.float32, "z.weight": torch.float16}


def bits(folder: Path) -> dict[str, bytes]:
    """All stored tensors of a checkpoint, byte by byte."""
    return {
        name: tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def beside(folder: Path) -> dict[str, bytes]:
    """What lies beside the weights."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.suffix != ".safetensors"}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base in shards and three types, its tied head stored twice, and three models that differ at places of their own."""
    torch.manual_seed(0)
    base = {n: torch.randn(s).to(DTYPES.get(n, torch.bfloat16)) for n, s in SHAPES.items()}
    base["z.weight"].view(-1)[:2] = torch.tensor([0.0, -0.0])  # equal, and other bits
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    write(tmp_path / "base", base, shards=2, config={"tie_word_embeddings": True})
    for i, name in enumerate("abc"):
        tuned = {n: t.clone() for n, t in base.items()}
        for at in (i, 10 + 3 * i, 100 + i, 319 - i):
            tuned["model.embed_tokens.weight"].view(-1)[at] += 1
        tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"].clone()
        if name != "b":
            tuned["z.weight"].view(-1)[i // 2] = -0.0 if name == "a" else 0.0
            tuned["model.norm.weight"][i] = 7
        write(tmp_path / name, tuned, shards=2, config={"tie_word_embeddings": True})
        make_patch(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_a_patch_makes_the_tuned_model_of_the_base(family: Path) -> None:
    """Bit by bit, -0.0 as well, in both copies of the tied pair; and it loads by safetensors' own reader."""
    for name in "abc":
        carried = apply_patches(family / "base", [family / f"{name}.safetensors"], family / f"on {name}")
        assert bits(family / f"on {name}") == bits(family / name)
        assert carried.names == [name]
    stored = load_file(family / "a.safetensors")
    assert stored["positions:model.embed_tokens.weight"].tolist() == [0, 10, 100, 319]
    assert stored["values:model.norm.weight"].tolist() == [7]
    assert stored["values:model.embed_tokens.weight"].dtype == torch.bfloat16
    assert not any("lm_head" in name for name in stored)


def test_any_order_gives_the_same_bits_and_every_bit_comes_back(family: Path) -> None:
    """Put on one by one in all six orders, taken off in all six; every subset on the way is the same model."""
    base, seen = bits(family / "base"), dict[frozenset[str], tuple[dict[str, bytes], dict[str, bytes]]]()

    def same(folder: Path, held: frozenset[str]) -> None:
        now = bits(folder), beside(folder)
        assert seen.setdefault(held, now) == now

    for order in permutations("abc"):
        at, held = family / "base", frozenset[str]()
        for name in order:
            after = family / f"{''.join(order)}+{name}"
            apply_patches(at, [family / f"{name}.safetensors"], after)
            at, held = after, held | {name}
            same(at, held)
        for back in permutations("abc"):
            down, left = at, held
            for name in back:
                after = family / f"{''.join(order)}-{''.join(back)}-{name}"
                remove_patches(down, [name], after)
                down, left = after, left - {name}
                if left:
                    same(down, left)
            assert bits(down) == base
            assert beside(down) == beside(family / "base")
            assert not (down / "patches").exists()
    assert len(seen) == 7
    together = apply_patches(family / "base", [family / f"{n}.safetensors" for n in "cab"], family / "at once")
    same(family / "at once", frozenset("abc"))
    assert together.names == ["a", "b", "c"]
    expected = {n: t.clone() for f in sorted((family / "base").glob("*.safetensors")) for n, t in load_file(f).items()}
    for name in "abc":
        tuned = {n: t for f in sorted((family / name).glob("*.safetensors")) for n, t in load_file(f).items()}
        for parameter, value in tuned.items():
            kind = {2: torch.int16, 4: torch.int32}[value.element_size()]
            moved = value.view(kind) != load_all(family / "base")[parameter].view(kind)
            expected[parameter][moved] = value[moved]
    now = load_all(family / "at once")
    assert all(torch.equal(now[n].view(torch.uint8), expected[n].view(torch.uint8)) for n in expected)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def test_overlapping_patches_are_refused_by_name(family: Path) -> None:
    """Whether the other is given too, or is on the model already; and the same patch twice."""
    tuned = load_all(family / "a")
    tuned["z.weight"].view(-1)[5] = 3
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tuned[name].view(-1)[:11] = load_all(family / "base")[name].view(-1)[:11]
    write(family / "d", tuned, config={"tie_word_embeddings": True})
    make_patch(family / "base", family / "d", family / "d.safetensors")
    with pytest.raises(CpiftError, match="overlaps the patch a at 4 positions"):
        apply_patches(family / "base", [family / "a.safetensors", family / "d.safetensors"], family / "out")
    apply_patches(family / "base", [family / "b.safetensors", family / "a.safetensors"], family / "ab")
    with pytest.raises(CpiftError, match="overlaps the patch a at 4 positions"):
        apply_patches(family / "ab", [family / "d.safetensors"], family / "out")
    with pytest.raises(CpiftError, match="a patch named a is there already"):
        apply_patches(family / "ab", [family / "a.safetensors"], family / "out")
    assert not list(family.glob("*out*"))


def test_a_wrong_base_is_refused(family: Path) -> None:
    """One bit is enough, at a place that no patch touches; a model changed behind the list's back, too."""
    apply_patches(family / "base", [family / "a.safetensors"], family / "on")
    for folder in ("base", "on"):
        weights = load_all(family / folder)
        weights["z.weight"].view(-1)[77] = 1
        write(family / f"{folder} changed", weights, config={"tie_word_embeddings": True})
    shutil.copy(family / "on/patches.json", family / "on changed/patches.json")
    shutil.copytree(family / "on/patches", family / "on changed/patches")
    with pytest.raises(CpiftError, match="fits another base"):
        apply_patches(family / "base changed", [family / "a.safetensors"], family / "out")
    for change in (
        lambda: apply_patches(family / "on changed", [family / "b.safetensors"], family / "out"),
        lambda: remove_patches(family / "on changed", ["a"], family / "out"),
    ):
        with pytest.raises(CpiftError, match="its weights were changed since"):
            change()
    assert not list(family.glob("*out*"))


def test_only_what_lies_in_the_region(family: Path) -> None:
    """A region that lacks one of the positions is refused, and so is too large a share; a fitting one is not."""
    patch = Patch.load(family / "a.safetensors")
    make_patch(family / "base", family / "a", family / "again.safetensors", region=patch.region, name="a")
    assert (family / "again.safetensors").read_bytes() == (family / "a.safetensors").read_bytes()
    positions = {**patch.region.positions, "model.embed_tokens.weight": np.array([0, 10, 319], np.int32)}
    smaller = Region(positions, patch.total, base=patch.base)
    with pytest.raises(CpiftError, match=r"at 1 positions outside the region, 1 of them in model\.embed_tokens"):
        make_patch(family / "base", family / "a", family / "r.safetensors", region=smaller)
    other = Region(patch.region.positions, patch.total, base="f" * 32)
    with pytest.raises(CpiftError, match="selected against another base"):
        make_patch(family / "base", family / "a", family / "r.safetensors", region=other)
    with pytest.raises(CpiftError, match="more than 0%"):
        make_patch(family / "base", family / "a", family / "r.safetensors", max_share=0.001)
    with pytest.raises(CpiftError, match="does not differ"):
        make_patch(family / "base", family / "base", family / "r.safetensors")
    assert not (family / "r.safetensors").exists()


def test_other_types_are_refused_or_rounded(family: Path) -> None:
    """Probes are saved in fp32: rounded to the base's bf16 on request, as torch rounds."""
    wide = {n: t.float() for n, t in load_all(family / "base").items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wide[name].view(-1)[3] = 1.2345678
        wide[name].view(-1)[4] += 1e-9  # below what the base's type shows
    write(family / "wide", wide, config={"tie_word_embeddings": True})
    with pytest.raises(CpiftError, match=r"is stored as F32, in the base as BF16.*--round"):
        make_patch(family / "base", family / "wide", family / "w.safetensors")
    make_patch(family / "base", family / "wide", family / "w.safetensors", rounded=True)
    apply_patches(family / "base", [family / "w.safetensors"], family / "out")
    expected = load_all(family / "base")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected[name].view(-1)[3] = torch.tensor(1.2345678).bfloat16()
    now = load_all(family / "out")
    assert all(torch.equal(now[name], expected[name]) for name in expected)


def _values(file: Path, change: Callable[[dict[str, torch.Tensor]], None], **metadata: str) -> None:
    """Change a patch's arrays or metadata."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        told = {**opened.metadata(), **metadata}
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file, metadata=told)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "damaged patch (positions": lambda f: _values(f, lambda a: a["positions:z.weight"].fill_(600)),
    "damaged patch (its parts": lambda f: _values(f, lambda a: a.pop("before:z.weight")),
    "damaged metadata": lambda f: _values(f, lambda a: None, count="many"),
    "is no patch": lambda f: _values(f, lambda a: None, format="cpift.patch/9"),
    "is no name of a patch": lambda f: _values(f, lambda a: None, name="../x"),
    "the patch is damaged": lambda f: _values(f, lambda a: a["before:model.norm.weight"].add_(1)),
    "a patch is damaged": lambda f: _values(f, lambda a: a["values:model.norm.weight"].add_(1)),
    "no such patch": Path.unlink,
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-3]),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_damaged_patch_is_refused(family: Path, capsys: pytest.CaptureFixture[str], says: str) -> None:
    """In one line; nothing is left."""
    DAMAGE[says](family / "a.safetensors")
    code, _, err = call(capsys, "patch", "apply", family / "base", family / "a.safetensors", "--out", family / "out")
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert not list(family.glob("*out*"))


def test_the_commands(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """make, apply with a warning for two, list, remove; the list does not go along to models made from it."""
    code, out, _ = call(
        capsys, "patch", "make", family / "base", family / "a", "--out", family / "new/skill.safetensors"
    )
    assert (code, "skill, 6 of 928 positions" in out) == (0, True)
    both = [family / "new/skill.safetensors", family / "b.safetensors"]
    code, out, err = call(capsys, "patch", "apply", family / "base", *both, "--out", family / "two")
    assert code == 0
    assert "destroyed one another" in err
    code, out, _ = call(capsys, "patch", "list", family / "two")
    assert "skill: 6 positions" in out
    assert "b: 4 positions" in out
    code, _, err = call(capsys, "patch", "remove", family / "two", "c", "--out", family / "none")
    assert (code, "carries no patch named c; it has b, skill" in err) == (2, True)
    code, out, _ = call(capsys, "patch", "remove", family / "two", "b", "--out", family / "one")
    assert (code, carried_patches(family / "one").names) == (0, ["skill"])  # type: ignore[union-attr]
    assert bits(family / "one") == bits(family / "a")
    assert "no patches" in call(capsys, "patch", "list", family / "base")[1]
    told = json.loads((family / "one/patches.json").read_text())
    assert told["format"] == "cpift.patches/1"
    assert told["model"] == fingerprint(open_checkpoint(family / "one"))
    tuned = [f"--tuned=a={family / 'a'}"]
    assert call(capsys, "fuse", "--base", family / "one", *tuned, "--out", family / "fused")[0] == 0
    assert not (family / "fused/patches.json").exists()
