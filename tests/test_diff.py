"""``cpift diff``: against plain numpy, against identify and group, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import plain
import pytest
from checkpoints import CONFIGS, family, write
from tiny_run import call

from cpift.method.compare_updates import Comparison, compare_updates
from cpift.method.group import group
from cpift.method.identify import identify
from cpift.report.diff_page import diff_page


def compared(paths: list[Path], **options: Any) -> Comparison:
    return compare_updates(paths[0], {path.name: path for path in paths[1:]}, **options)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_agrees_with_numpy(tmp_path: Path, kind: str) -> None:
    """Five architectures, in shards; overlap, signs, cosine, norm and shares."""
    paths = family(tmp_path, kind, tasks=3, shard="20KB")
    found = compared(paths, percent=5)
    base, *tuned = map(plain.load, paths)
    total = sum(weight.size for weight in base.values())
    updates = [{n: (t[n] - base[n]).ravel() for n in base} for t in tuned]
    cores = [plain.core(base, t, "5") for t in tuned]
    whole = [np.concatenate([u[n] for n in sorted(base)]).astype(np.float64) for u in updates]
    assert (found.total, sum(found.sizes.values())) == (total, total)
    for pair, (i, j) in zip(found.pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert (pair.first, pair.second) == (f"task{i + 1}", f"task{j + 1}")
        shared = plain.as_set(cores[i]) & plain.as_set(cores[j])
        assert pair.overlap == pytest.approx(plain.jaccard(cores[i], cores[j]), abs=1e-12)
        assert pair.shared == len(shared) > 10
        same = [np.signbit(updates[i][n][at]) == np.signbit(updates[j][n][at]) for n, at in shared]
        assert pair.same_sign == pytest.approx(np.mean(same), abs=1e-12)
        cosine = whole[i] @ whole[j] / np.linalg.norm(whole[i]) / np.linalg.norm(whole[j])
        assert pair.cosine == pytest.approx(cosine, abs=1e-9)
        k = sum(map(len, cores[i].values()))
        assert pair.chance == pytest.approx((k * k / total) / (2 * k - k * k / total))
        embedded = sum("embed" in n or ".wte" in n or ".wpe" in n for n, _ in shared) / len(shared)
        assert pair.shared_share.kinds.get("embedding", 0.0) >= embedded
    for model, core, update in zip(found.models, cores, whole, strict=True):
        assert model.core == {n: len(p) for n, p in core.items()}
        assert model.norm == pytest.approx(np.linalg.norm(update))
        for part in (model.share.kinds, model.share.modules, model.share.layers):
            assert sum(part.values()) == pytest.approx(1)
        inside = sum(len(p) for n, p in core.items() if ".1." in n)
        assert model.share.layers["1"] == pytest.approx(inside / model.count)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_agrees_with_identify_and_group(tmp_path: Path, kind: str) -> None:
    """The same overlaps, signs and groups, of shards, and with parameters left out as well."""
    paths = family(tmp_path, kind, tasks=4, shard="20KB")
    assert len(list(paths[1].glob("*.safetensors"))) > 1
    models = {path.name: path for path in paths[1:]}
    for exclude in ([], ["*.0.*"]):
        regions = identify(paths[0], models, 20, exclude=exclude)
        overlaps = sorted(a.jaccard(b) for i, a in enumerate(regions.values()) for b in list(regions.values())[:i])
        wanted = group(regions, overlaps[-1])  # one pair of six is grouped
        found = compared(paths, percent="20", threshold=overlaps[-1], exclude=exclude)
        assert found.overlaps() == wanted.jaccard
        assert found.groups == wanted.groups
        assert len(found.groups) == 3
        signs = [wanted.sign_agreement[i][j] for j in range(4) for i in range(j)]
        assert [pair.same_sign for pair in found.pairs] == signs
        assert [model.fingerprint for model in found.models] == [region.tuned for region in regions.values()]


def test_chance_tensor_by_tensor_is_what_random_positions_give(tmp_path: Path) -> None:
    """Two regions with all positions in one small tensor overlap often by chance; numpy draws the same shares."""
    rng = np.random.default_rng(0)
    base = {"a.weight": np.zeros((10, 20), np.float32), "b.weight": np.zeros((40, 50), np.float32)}
    write(tmp_path / "base", base)
    for name in ("x", "y"):
        size = {
            n: (30 if n == "a.weight" else 1) * rng.standard_normal(w.shape).astype(np.float32) for n, w in base.items()
        }
        write(tmp_path / name, size)
    (pair,) = compared([tmp_path / n for n in ("base", "x", "y")], percent=5).pairs
    drawn = []
    for _ in range(300):
        left, right = (set(rng.choice(200, 110, replace=False)) for _ in range(2))
        drawn.append(len(left & right) / len(left | right))
    assert pair.chance == pytest.approx((110 * 110 / 2200) / (220 - 110 * 110 / 2200))
    assert pair.chance_by_tensor == pytest.approx(np.mean(drawn), rel=0.03)


def test_positions_that_did_not_change_are_in_no_region(tmp_path: Path) -> None:
    """identify fills a region up by position; two such regions would overlap where neither model moved."""
    base = {"w.weight": np.zeros((20, 50), np.float32)}
    write(tmp_path / "base", base)
    for name, at in (("x", 700), ("y", 800)):
        moved = base["w.weight"].copy()
        moved.ravel()[at : at + 6] = 1
        write(tmp_path / name, {"w.weight": moved})
    found = compared([tmp_path / n for n in ("base", "x", "y")], percent=10)
    (pair,) = found.pairs
    assert (pair.overlap, pair.shared, pair.same_sign) == (0.0, 0, None)
    assert [model.count for model in found.models] == [6, 6]
    assert sum("only 6 of the 100 core positions changed" in text for text in found.warnings) == 2


def test_a_model_that_is_the_base_itself(tmp_path: Path) -> None:
    """No region, no cosine, a warning; not a division by zero."""
    paths = family(tmp_path, "llama", tasks=1)
    found = compare_updates(paths[0], {"same": paths[0], "task": paths[1]})
    assert (found.pairs[0].overlap, found.pairs[0].cosine, found.models[0].count) == (0.0, None, 0)
    assert any("same" in text for text in found.warnings)
    assert "core region of same has 0 positions" in diff_page(compare_updates(paths[0], {"same": paths[0]}), "base")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, JSON and page hold the same numbers; nothing else is written."""
    paths = family(tmp_path, "llama", tasks=3)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(
        capsys, "diff", *paths[:3], f"third={paths[3]}", "--percent", "5", "--html", tmp_path / "d.html"
    )
    assert (code, err) == (0, "")
    _, text, _ = call(capsys, "diff", *paths[:3], f"third={paths[3]}", "--percent", "5", "--json")
    told = json.loads(text)
    assert told["schema"] == "cpift.diff/1"
    assert [(p["first"], p["second"]) for p in told["pairs"]] == [
        ("task1", "task2"),
        ("task1", "third"),
        ("task2", "third"),
    ]
    page = (tmp_path / "d.html").read_text()
    for pair in told["pairs"]:
        assert f"{pair['first']} – {pair['second']}" in out
        assert f"{pair['overlap']:.4f}" in out
        assert f"{pair['overlap']:.4f}" in page
    for said in (out, page):
        assert "the loss of one specialist on rows of the other (docs/results/m2.md)" in " ".join(said.split())
        assert "docs/results/archive.md" in said
    assert "<script src" not in page
    assert "<link" not in page
    assert "default-src 'none'" in page
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "d.html"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["base", "task1", "./task1"], "two checkpoints are named task1"),
        (["base", "other"], "does not fit"),
        (["base", "nowhere"], "no such checkpoint"),
        (["base", "task1", "--percent", "0"], "percent: 0 is not in"),
        (["base", "task1", "--threshold", "2"], "threshold: 2.0 is not in"),
        (["base", "task1", "--exclude", "nothing*"], "matches no parameter"),
    ],
)
def test_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """In one line, as fuse does."""
    family(tmp_path, "llama", tasks=1)
    family(tmp_path / "others", "mistral", tasks=1)[1].rename(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "diff", *arguments)
    assert code == 2
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
def test_an_adapter_is_the_model_that_it_makes(tmp_path: Path) -> None:
    """The same numbers as of the merged checkpoints, in fp32."""
    base = adapters.base(tmp_path / "base", "llama")
    made = {name: adapters.adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate("xy", start=1)}
    for name, folder in made.items():
        adapters.merged(folder, base).save_pretrained(tmp_path / "merged" / name)
    whole = {name: tmp_path / "merged" / name for name in made}
    found, wanted = (compare_updates(base, models, 5) for models in (made, whole))
    (pair,), (expected,) = found.pairs, wanted.pairs
    assert pair.cosine == pytest.approx(expected.cosine, abs=1e-4)
    assert pair.overlap == pytest.approx(expected.overlap, abs=5e-3)
    assert pair.shared > 10
    regions = identify(base, made, 5)
    assert (pair.shared, pair.overlap) == (regions["x"].overlap(regions["y"])[0], regions["x"].jaccard(regions["y"]))
    assert [model.fingerprint for model in found.models] == [region.tuned for region in regions.values()]
    for model, merged in zip(found.models, wanted.models, strict=True):
        assert model.norm == pytest.approx(merged.norm, rel=1e-5)
        assert model.core.keys() == merged.core.keys()
