"""``model:`` as a record, and the attention that it asks for: in training and in scoring, refused before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import call

from cpift.errors import CpiftError
from cpift.evaluation import opened
from cpift.recipe.recipe import Recipe
from cpift.runs.preflight import check_models
from cpift.train import fine_tune as training
from cpift.train import models


def test_a_record_stands_for_keys(tmp_path: Path) -> None:
    """A bare string stays short for it; what a run writes down reads back as the same recipe."""
    recipe = tiny.recipe(tmp_path)
    keys = {"revision": "main", "attn_implementation": "eager"}
    record = Recipe.parse({**recipe, "model": {"path": recipe["model"], **keys}})
    assert record == Recipe.parse({**recipe, **keys})
    assert record.model == recipe["model"]
    assert record.changed({}) == record
    assert Recipe.parse({**recipe, "model": {"path": recipe["model"]}}) == Recipe.parse(recipe)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"path": "p", "atn_implementation": "sdpa"}}, "model: unknown key 'atn_implementation'; did you mean 'attn_"),
        ({"model": {"revision": "main"}}, "model: 'path' is missing"),
        ({"model": {"path": "p", "revision": "a"}, "revision": "b"}, "model.revision: is given twice, as a and as b"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """It names the key."""
    with pytest.raises(CpiftError, match=said):
        Recipe.parse({**tiny.recipe(tmp_path), **change})


@pytest.mark.parametrize("name", ["flash_attention_2", "eagre"])
def test_an_attention_that_transformers_refuses_is_refused_first(tmp_path: Path, name: str) -> None:
    """A package that is not installed, and a misspelt name."""
    recipe = Recipe.parse({**tiny.recipe(tmp_path), "attn_implementation": name})
    with pytest.raises(CpiftError, match=f"^attn_implementation: transformers refuses '{name}' here") as refused:
        check_models(recipe)
    assert "\n" not in str(refused.value)


def test_every_model_of_a_run_has_the_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained and scored; and the stages are other ones than those of a recipe that leaves it open."""
    seen: list[tuple[str, str]] = []
    load = models.load_model
    for module in (training, opened):

        def loading(*given: Any, user: str = module.__name__, **named: Any) -> Any:
            model = load(*given, **named)
            seen.append((user, model.config._attn_implementation))
            return model

        monkeypatch.setattr(module, "load_model", loading)
    plain = tiny.recipe(tmp_path, ("reverse", "upper"), probe={"steps": 1})
    asked = {**plain, "model": {"path": plain["model"], "attn_implementation": "eager"}}
    for name, recipe in {"eager": asked, "open": plain}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        seen.clear()
        until = () if name == "eager" else ("--until", "probe")
        assert call(capsys, "run", tmp_path / f"{name}.yaml", "--out", tmp_path / name, *until)[0] == 0
        assert {attention for _, attention in seen} == {"eager" if name == "eager" else "sdpa"}
        assert name == "open" or {user for user, _ in seen} == {m.__name__ for m in (training, opened)}
    stage = Path("stages/01-probe/reverse/stage.json")
    keys = [json.loads((tmp_path / name / stage).read_text()) for name in ("eager", "open")]
    assert keys[0]["settings"].pop("attn_implementation") == "eager"
    assert keys[0]["settings"] == keys[1]["settings"]
    assert keys[0]["key"] != keys[1]["key"]
