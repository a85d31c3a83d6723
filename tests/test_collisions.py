"""Predicted collisions: losses against plain torch, the order against plain numbers, and what is refused."""

from __future__ import annotations

import json
import shlex
import weakref
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from report_folders import made_run
from tiny_run import call, one_thread
from transformers import AutoModelForCausalLM

from cpift.console.reporter import Reporter
from cpift.evaluation import collisions, opened
from cpift.metrics.collision import EVIDENCE, not_learnt, predicted, sentence
from cpift.metrics.score import ScoreEntry
from cpift.report import make_report
from cpift.report.facts import read_run
from cpift.report.predictions import HOW, run_predictions

ROOT = Path(__file__).parents[1]
WORDS = ("abba", "cede", "fade", "bead", "deaf", "cafe", "babe", "face")


def texts(count: int = 8) -> list[dict[str, str]]:
    """Rows of prompt and completion, of several lengths."""
    return [{"prompt": f"say {word}:", "completion": f" {word * (1 + i % 3)}"} for i, word in enumerate(WORDS[:count])]


def by_hand(folder: Path, rows: list[dict[str, str]]) -> tuple[float, int]:
    """Mean loss over the tokens of the completions and the end, and their number: one row at a time, plain torch."""
    network = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    total, count = 0.0, 0
    letters = tiny.tokenizer()
    for row in rows:
        before = len(row["prompt"].encode())  # one token a byte
        ids = letters(row["prompt"] + row["completion"], add_special_tokens=False)["input_ids"]
        ids = [*ids, letters.convert_tokens_to_ids("<|im_end|>")]
        with torch.no_grad():
            logs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= sum(float(logs[at - 1, ids[at]]) for at in range(before, len(ids)))
        count += len(ids) - before
    return total / count, count


def changed(source: Path, folder: Path, noise: float, seed: int) -> Path:
    """A model beside another one."""
    network = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += noise * torch.randn_like(parameter)
    network.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``; ``a``, which has learnt the rows; ``near`` and ``near2``, hardly moved; ``far``, moved at random."""
    folder = tmp_path_factory.mktemp("collide")
    tiny.base(folder / "base")
    changed(folder / "base", folder / "near", 1e-6, 1)
    changed(folder / "base", folder / "near2", 1e-6, 2)
    changed(folder / "base", folder / "far", 0.3, 3)
    network = AutoModelForCausalLM.from_pretrained(folder / "base")
    optimizer, letters = torch.optim.Adam(network.parameters(), 1e-2), tiny.tokenizer()
    with one_thread():
        for _ in range(10):
            for row in texts(4):
                ids = torch.tensor([letters(row["prompt"] + row["completion"])["input_ids"]])
                optimizer.zero_grad()
                network(ids, labels=ids).loss.backward()
                optimizer.step()
    network.save_pretrained(folder / "a")
    letters.save_pretrained(folder / "a")
    tiny.jsonl(folder / "a.jsonl", texts())
    return folder


def test_losses_are_those_of_plain_torch_and_give_the_order(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In JSON, terminal and page; all tokens weigh alike, whatever row they are in."""
    monkeypatch.chdir(place)
    given = ("diff", "base", "near", "a", "far", "near2", "--rows", "a=a.jsonl")
    code, out, err = call(capsys, *given, "--json")
    assert code == 0
    assert "5 models are scored on 8 rows, one at a time" in err
    told = json.loads(out)
    (found,) = told["prediction"]["skills"]
    expected = {name: by_hand(place / name, texts()) for name in ("base", "near", "a", "far", "near2")}
    losses = {loss["model"]: loss["loss"] for loss in (found["base"], found["own"], *found["others"])}
    assert losses == {name: pytest.approx(loss, rel=1e-5) for name, (loss, _) in expected.items()}
    assert (found["rows"], found["tokens"]) == (8, expected["a"][1])
    assert expected["far"][0] > expected["near"][0] + 0.1
    ends = sorted(("near", "near2"), key=lambda name: -losses[name])
    assert found["order"] == [["far"], ends]
    assert told["prediction"]["evidence"] == list(EVIDENCE)
    code, out, _ = call(capsys, *given, "--html", tmp_path / "d.html")
    page = (tmp_path / "d.html").read_text()
    for shown in (out, page):
        assert "redicted to harm a most: far, then " in shown
        assert f"{expected['far'][0]:.3f} (" in shown
        assert "0.67 (95 %: 0.54 … 0.79)" in shown
        assert "--rows A=ROWS" not in shown


def test_without_rows_the_way_to_a_prediction_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    _, out, _ = call(capsys, "diff", "base", "a", "far")
    assert "They are a description, not a prediction" in out
    assert "--rows A=ROWS" in out
    assert "predicted to harm" not in out
    assert "prediction" not in json.loads(call(capsys, "diff", "base", "a", "far", "--json")[1])


def test_rows_are_drawn_by_seed(place: Path) -> None:
    """Three of the eight rows, in their order; another seed draws others."""
    models = {name: place / name for name in ("a", "far")}

    def drawn(seed: int) -> list[int]:
        files = {"a": str(place / "a.jsonl")}
        (skill,) = collisions.read_skills(place / "base", models, files, rows=3, seed=seed)
        said = [skill.tokenizer.decode(row.input_ids) for row in skill.encoded]
        return [next(i for i, row in enumerate(texts()) if row["prompt"] in text) for text in said]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert len(set(drawn(0))) == 3
    assert drawn(0) != drawn(1)


def test_all_models_read_the_rows_by_the_template_of_their_own_model(place: Path, tmp_path: Path) -> None:
    """A base without a chat template is scored; a model with another one is reported."""
    for name in ("base", "near"):
        network = AutoModelForCausalLM.from_pretrained(place / name)
        network.save_pretrained(tmp_path / name)
        letters = tiny.tokenizer()
        letters.chat_template = None if name == "base" else tiny.CHATML.replace("<|im_end|>\n", "<|im_end|>")
        letters.save_pretrained(tmp_path / name)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows("upper", 4, 0))
    models = {"a": place / "a", "near": tmp_path / "near", "far": place / "far"}
    skills = collisions.read_skills(tmp_path / "base", models, {"a": str(rows)})
    (found,) = collisions.predict_collisions(tmp_path / "base", models, skills, Reporter())
    again = collisions.read_skills(place / "base", {**models, "near": place / "near"}, {"a": str(rows)})
    (same,) = collisions.predict_collisions(place / "base", {**models, "near": place / "near"}, again, Reporter())
    assert found == same
    assert "near would read these rows by another tokenizer or chat template" in skills[0].notes[0]
    assert not again[0].notes


def test_one_model_is_in_memory_at_a_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is gone before the next one is loaded."""
    load, held = opened.load_model, list[Any]()

    def watched(*given: Any) -> Any:
        assert not [one for one in held if one() is not None]
        network = load(*given)
        held.append(weakref.ref(network))
        return network

    monkeypatch.setattr(opened, "load_model", watched)
    models = {name: place / name for name in ("a", "far", "near")}
    skills = collisions.read_skills(
        place / "base", models, {"a": str(place / "a.jsonl"), "far": str(place / "a.jsonl")}
    )
    collisions.predict_collisions(place / "base", models, skills, Reporter())
    assert len(held) == 4


def entry(items: list[float], tokens: list[int]) -> ScoreEntry:
    """Losses of rows."""
    score = sum(i * t for i, t in zip(items, tokens, strict=True)) / sum(tokens)
    return {"metric": "loss", "score": score, "items": items, "tokens": tokens}


def test_the_order_groups_what_is_level_within_noise() -> None:
    """Paired by row: b is above c in every row by about one; d is c with noise of mean zero."""
    tokens = [2, 3, 4, 5, 6, 7]
    c = [1.0, 2.0, 3.0, 1.5, 2.5, 3.5]
    b = [x + gap for x, gap in zip(c, (0.9, 1.1, 1.0, 0.8, 1.2, 1.0), strict=True)]
    d = [x + gap for x, gap in zip(c, (0.3, -0.3, 0.2, -0.2, 0.3, -0.3), strict=True)]
    own, base = entry([0.1] * 6, tokens), entry([2.0] * 6, tokens)
    found = predicted("a", base, own, {"c": entry(c, tokens), "b": entry(b, tokens), "d": entry(d, tokens)})
    assert found.order == [["b"], ["c", "d"]]
    assert sentence(found) == "predicted to harm a most: b, then c or d (level within noise)"
    weights, values = np.array(tokens), np.array(b)
    mean = np.average(values, weights=weights)
    error = np.sqrt(np.sum((weights * (values - mean)) ** 2) * 6 / 5) / weights.sum()
    first = found.others[0]
    assert (first.loss, first.low, first.high) == pytest.approx((mean, mean - 1.96 * error, mean + 1.96 * error), 1e-4)
    assert not not_learnt([found])
    assert "is not below the base's" in not_learnt([predicted("a", own, base, {})])[0]
    assert predicted("a", base, own, {"b": entry(b, tokens)}).order == []
    level = predicted("a", base, own, {"c": entry(c, tokens), "d": entry(d, tokens)})
    assert "no order is predicted" in sentence(level)


def test_the_evidence_is_that_of_the_table() -> None:
    """The numbers that terminal and page quote are those of docs/results/m2.md."""
    lines = (ROOT / "docs/results/m2.md").read_text().splitlines()

    def cells(start: str) -> list[str]:
        line = next(line for line in lines if line.startswith(f"| {start}"))
        return [cell.strip().replace("+", "").replace("-", "−") for cell in line.split("|")[1:-1]]

    told = " ".join(EVIDENCE).replace("95 %: ", "")
    probe, overlap = cells("loss of the new probe on old rows"), cells("overlap of the cores, 10 %")
    for number in (probe[2], probe[4], overlap[2]):
        assert number in told


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["--rows", "b=a.jsonl"], "--rows b: is none of the checkpoints (a, far, near)"),
        (["--rows", "a.jsonl"], "write it as NAME=PATH"),
        (["--rows", "a=a.jsonl", "--rows", "a=a.jsonl"], "the name a is given twice"),
        (["--rows", "a=nowhere.jsonl"], "--rows a: nowhere.jsonl"),
        (["--rows", "a=empty.jsonl"], "--rows a: empty.jsonl holds no rows"),
        (["--rows", "a=shape.jsonl"], "--rows a: shape.jsonl, line 1"),
        (["--rows", "a=lm_eval:gsm8k"], "is a benchmark"),
        (["--rows", "a=a.jsonl", "--max-length", "3"], "no row has a token to score within 3 tokens"),
        (["--rows", "plain=chat.jsonl"], "plain has no chat template"),
    ],
)
def test_it_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: list[str], says: str
) -> None:
    """In one line, before any model is read."""
    monkeypatch.chdir(place)
    tiny.jsonl(place / "empty.jsonl", [])
    tiny.jsonl(place / "shape.jsonl", [{"words": "a"}])
    tiny.jsonl(place / "chat.jsonl", tiny.rows("upper", 2, 0))
    if not (place / "plain").exists():
        changed(place / "base", place / "plain", 1e-3, 4)
        letters = tiny.tokenizer()
        letters.chat_template = None
        letters.save_pretrained(place / "plain")
        (place / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    third = "plain" if "plain=" in rows[1] else "near"
    code, out, err = call(capsys, "diff", "base", "a", "far", third, *rows)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert len(err.splitlines()) == 1


def test_a_single_model_has_no_collision(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    code, _, err = call(capsys, "diff", "base", "a", "--rows", "a=a.jsonl")
    assert code == 2
    assert "a collision takes two fine-tuned checkpoints" in err


def test_a_run_scored_by_loss_shows_its_predictions(tmp_path: Path) -> None:
    """The probe with the highest loss on a task's rows comes first; a task by exact match has no loss to predict by."""
    folder = made_run(tmp_path / "run", ["a", "b", "c", "d"], metrics=dict.fromkeys("abc", "loss"))
    found = {one.old: one for one in run_predictions(read_run(folder))}
    assert list(found) == ["a", "b", "c"]
    for task, one in found.items():
        files = {other: folder / f"stages/07-evaluate/probe-{other}/{task}/score.json" for other in "abcd"}
        losses = {other: np.mean(json.loads(file.read_text())["items"]) for other, file in files.items()}
        others = sorted(set("abcd") - {task}, key=lambda other: -losses[other])
        assert [loss.model for loss in one.others] == others
        assert one.own.loss == pytest.approx(losses[task])
    page = make_report(folder).read_text()
    assert "Predicted collisions" in page
    assert unescape(HOW) in unescape(page)
    assert page.count("--rows") == 1
    assert EVIDENCE[0] in page


def test_a_run_by_exact_match_tells_how_to_predict(tmp_path: Path) -> None:
    page = make_report(made_run(tmp_path / "run", ["a", "b", "it's"])).read_text()
    assert unescape(HOW) in unescape(page)
    assert EVIDENCE[0] not in page
    words = shlex.split(unescape(page).partition("cpift diff ")[2].partition("</pre>")[0])
    assert words[:4] == ["run/stages/00-base", *(f"{task}=run/stages/01-probe/{task}" for task in ("a", "b", "it's"))]
    assert words[-2:] == ["--rows", "it's=run/stages/00-tasks/it's/eval.jsonl"]
