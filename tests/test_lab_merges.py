"""Merges, forms and orders of the laboratory: against the package's, plain numpy, and by what must hold."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write
from safetensors.numpy import load_file

from cpift import fuse, identify

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from lab import batches, conflict, merging, paper_form
from lab.ciphers import cipher_rows, maps
from lab.forms import FORMS, Trial, as_large, groups_of, overlaps, shuffled
from lab.merges import MERGES, Given, stitched
from lab.network import Network
from lab.outcomes import lines
from lab.rows import task_rows, vocabulary_size
from lab.run import Laboratory, Size

SIZES = {"a": (40, 5), "b": (60,), "c": (3,)}
COUNTS = [int(np.prod(shape)) for shape in SIZES.values()]
N, D = 3, sum(COUNTS)


@pytest.fixture(scope="module")
def given() -> Given:
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.normal(size=D).astype(np.float32))
    tuned = base + torch.from_numpy(rng.normal(size=(N, D)).astype(np.float32))  # updates as fuse has them: θᵢ - θ⁰
    return Given(base, tuned - base, COUNTS, torch.ones(N, D), 0)


def as_checkpoint(folder: Path, flat: torch.Tensor) -> Path:
    parts = np.split(flat.numpy(), np.cumsum(COUNTS)[:-1])
    return write(folder, {name: p.reshape(shape) for p, (name, shape) in zip(parts, SIZES.items(), strict=True)})


@pytest.mark.parametrize("overlap", ["largest", "mean", "order"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_stitching_is_what_identify_and_fuse_make(given: Given, tmp_path: Path, overlap: str, weight: float) -> None:
    base = as_checkpoint(tmp_path / "base", given.base)
    tuned = {str(i): as_checkpoint(tmp_path / str(i), given.base + u) for i, u in enumerate(given.updates)}
    regions = identify(base, tuned, percent=20)
    fuse(base, tuned, tmp_path / "out", regions=regions, overlap=overlap, weight=weight)
    theirs = np.concatenate([load_file(tmp_path / "out" / "model.safetensors")[name].ravel() for name in SIZES])
    ours = stitched(given, {"p": 20.0, "overlap": overlap, "ω": weight})
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)


def largest(row: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(len(row), bool)
    mask[np.argsort(-np.abs(row), kind="stable")[:count]] = True
    return mask


def numpy_elected(kept: np.ndarray) -> np.ndarray:
    """Position by position."""
    out = np.zeros(kept.shape[1])
    for j, column in enumerate(kept.T):
        agree = column[(column > 0) if column.sum() >= 0 else (column < 0)]
        out[j] = agree.mean() if len(agree) else 0
    return out


def test_the_field_by_plain_numpy(given: Given) -> None:
    """TIES trims each tensor; stitching by elected signs is TIES trimmed over the whole model; DARE keeps expectations."""
    base, updates = given.base.numpy().astype(float), given.updates.numpy().astype(float)
    masks = [np.concatenate([largest(part, max(1, int(0.2 * len(part)))) for part in np.split(u, np.cumsum(COUNTS)[:-1])]) for u in updates]  # fmt: skip
    wanted = base + 0.5 * numpy_elected(updates * np.array(masks))
    ours = MERGES["ties"].made(given, {"density": 0.2, "form": "mean", "λ": 0.5})
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)
    whole = np.array([largest(u, int(0.2 * D)) for u in updates])
    ours = stitched(given, {"p": 20.0, "overlap": "sign", "ω": 0.0})
    np.testing.assert_allclose(ours.numpy(), base + numpy_elected(updates * whole), atol=1e-6)
    soup = base + updates.mean(0)
    np.testing.assert_allclose(MERGES["task_arithmetic"].made(given, {"λ": 1 / N}).numpy(), soup, atol=1e-6)
    several = [MERGES["dare"].made(replace(given, seed=i), {"density": 0.5, "λ": 1 / N}).numpy() for i in range(400)]
    assert np.abs(np.mean(several, axis=0) - soup).max() < 6 * np.abs(updates).max() / N**0.5 / 400**0.5


@pytest.mark.parametrize("name", MERGES)
def test_each_merge_has_as_many_trials_and_leaves_the_base(given: Given, name: str) -> None:
    settings, before = MERGES[name].settings, given.base.clone()
    assert len(settings) + 2 * name.startswith("stitch") == 30
    for setting in (settings[0], settings[-1]):
        assert torch.isfinite(MERGES[name].made(given, setting)).all()
    assert torch.equal(before, given.base)


def test_groups_are_connected_components() -> None:
    """Tasks 0 and 2 share an element of three, 2 and 3 as well; 1 is alone."""
    cores = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
    found = overlaps(cores)
    assert float(found[0, 2]) == pytest.approx(1 / 3)
    assert groups_of(found, 1 / 3 - 1e-6) == [[0, 2, 3], [1]]
    assert groups_of(found, 0.34) == [[0], [1], [2], [3]]
    assert sorted(map(len, as_large([[0, 2, 3], [1]], 5))) == [1, 3]
    assert sorted(shuffled([[0], [1], [2]], 1)) == [[0], [1], [2]]


@pytest.fixture(scope="module")
def trial() -> Trial:
    network = Network(vocabulary_size(), layers=1, width=16, heads=2, inner=16, half=False)
    rows = [task_rows(skill, 32, "test")[1] for skill in ("sort", "swap", "inner")]
    return Trial(network, network.initial(0), rows, 6, 1e-2, 10, seed=0)


def test_forms_spend_the_same_number_of_steps(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab import forms

    steps: list[int] = []

    def counted(
        _network: object, start: torch.Tensor, _draw: object, *, steps: int, **_: object
    ) -> tuple[torch.Tensor, int]:
        spent.append(steps)
        return start.clone(), 0

    spent = steps
    monkeypatch.setattr(forms, "train", counted)
    for name, form in FORMS.items():
        spent.clear()
        replace(trial, known={}).run(form, 1e-3, [[0, 1], [2]])
        assert sum(spent) == (9 if name == "half" else 18), name


def test_cores_of_earlier_groups_stay_as_they_are(trial: Trial) -> None:
    cores = trial.cores(trial.probes(0.5)[0])
    groups = [[1], [0, 2]]
    first, _ = trial.in_stages(trial.base, groups[:1], 6, 1e-2, cores)  # as many steps of this stage
    after, _ = trial.in_stages(trial.base, groups, 6, 1e-2, cores)
    assert torch.equal(first[cores[1]], after[cores[1]])
    free, _ = trial.in_stages(trial.base, groups, 6, 1e-2)
    assert not torch.equal(first[cores[1]], free[cores[1]])


def test_no_two_ciphers_agree_on_a_letter() -> None:
    tables = maps(3)
    for letter in tables[0]:
        images = [table[letter] for table in tables]
        assert len({letter, *images}) == len(tables) + 1
    skill = cipher_rows(1, 0, Size())
    asked = {tuple(i for i in ids if i) for ids in skill.evaluation.ids.tolist()}
    assert not asked & {tuple(i for i in ids if i) for ids in skill.train.ids.tolist() + skill.check.ids.tolist()}


@pytest.mark.parametrize("label", batches.LABELS)
def test_an_epoch_has_each_row_once(label: str) -> None:
    lengths = np.random.default_rng(0).integers(10, 30, 1600)
    order = batches.batches(lengths, label, 0)
    epoch = [next(order) for _ in range(100)]
    assert sorted(np.concatenate(epoch)) == list(range(1600))
    spread = np.mean([np.ptp(lengths[index]) for index in epoch])
    assert spread > 14 if label == "random" else spread < 3
    falling = np.mean([lengths[a].mean() >= lengths[b].mean() for a, b in pairwise(epoch)])
    assert (falling > 0.9) == (label == "grouped")


@pytest.mark.parametrize("name", ["s", "e3", "e4", "b1"])
def test_an_experiment_runs_and_is_not_run_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conflict, paper_form, batches):
        monkeypatch.setattr(module, "RATES", (1e-3,))
    monkeypatch.setattr(conflict, "SIZES", {"small": (1, 32)})
    monkeypatch.setattr(merging, "MERGES", {k: replace(m, settings=m.settings[:1]) for k, m in MERGES.items()})
    monkeypatch.setattr(merging, "RULES", ("largest",))
    laboratory = Laboratory(tmp_path, tiny=True)
    run = {"s": merging.s, "e3": conflict.e3, "e4": paper_form.e4, "b1": batches.b1}[name]
    run(laboratory, 1)
    first = (tmp_path / f"{name}.jsonl").read_text()
    run(laboratory, 1)
    assert (tmp_path / f"{name}.jsonl").read_text() == first
    cells = [cell for cell in lines(tmp_path / f"{name}.jsonl") if cell["unit"] == 1]
    assert len({cell["cell"] for cell in cells}) == len(cells) > 2
    assert all(isinstance(cell["right"], dict) for cell in cells)
