"""Base and tuned checkpoints that differ in configuration or tokenizer: the same, a warning, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compatibility_table
import pytest
import tiny

from cpift.checkpoint.compatibility import check_compatible, compare_configs
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.fuse import fuse
from cpift.method.identify import identify


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer."""
    return tiny.base(tmp_path_factory.mktemp("base") / "base")


def edited(source: Path, target: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy with another JSON file."""
    if not target.exists():
        shutil.copytree(source, target)
    table = json.loads((target / file).read_text())
    change(table)
    (target / file).write_text(json.dumps(table))
    return target


def test_the_docs_have_the_outcome_of_every_field() -> None:
    """Each field of five architectures, changed; ``python tests/compatibility_table.py`` writes the table anew."""
    text = compatibility_table.DOCS.read_text(encoding="utf-8")
    stated = text.split(compatibility_table.BEGIN)[1].split(compatibility_table.END)[0].strip()
    made = compatibility_table.table()
    assert stated == made
    for field in (
        "rope_parameters.rope_theta",
        "num_attention_heads",
        "hidden_act",
        "model_type",
        "tie_word_embeddings",
    ):
        row = next(line for line in made.splitlines() if f"`{field}`" in line)
        assert not {"warn", "same"} & set(row.replace("|", " ").split()), row


FIELDS: dict[str, Any] = {
    "rope_theta": 1e6, "num_attention_heads": 2, "num_key_value_heads": 4, "head_dim": 4, "hidden_act": "gelu",
    "model_type": "mistral", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_other_arithmetic_is_refused_by_name(base: Path, tmp_path: Path, field: str) -> None:
    """By fuse and by identify, before anything is written."""

    def change(config: dict[str, Any]) -> None:
        if field == "rope_theta":
            config["rope_parameters"]["rope_theta"] = FIELDS[field]
        else:
            config[field] = FIELDS[field]

    tuned = edited(base, tmp_path / "tuned", "config.json", change)
    for call in (lambda: fuse(base, {"a": tuned}, tmp_path / "out"), lambda: identify(base, {"a": tuned})):
        with pytest.raises(CpiftError, match=rf"config\.json does not fit .*{field}"):
            call()
    assert not (tmp_path / "out").exists()
    with pytest.raises(CpiftError, match=field):
        fuse(base, {"a": base}, tmp_path / "out", backbone=tuned)


def test_the_rest_is_a_warning_by_name(base: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config.update(attention_dropout=0.5, never_heard_of=3, use_cache=False, transformers_version="4.1")

    tuned = edited(base, tmp_path / "tuned", "config.json", change)
    report = fuse(base, {"a": tuned}, tmp_path / "out")
    assert len(report["warnings"]) == 1
    assert "attention_dropout is 0.5" in report["warnings"][0]
    assert "never_heard_of" in report["warnings"][0]
    assert "use_cache" not in report["warnings"][0]
    assert not fuse(base, {"a": base}, tmp_path / "same")["warnings"]


def test_older_spellings_are_the_same() -> None:
    """transformers 4 wrote rope_theta beside the rest, and left defaults out."""
    new = {"model_type": "llama", "hidden_size": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    old = {"model_type": "llama", "hidden_size": 32, "rope_theta": 5e5, "rope_scaling": None, "hidden_act": "silu"}
    assert not compare_configs(new, old)
    assert [d.field for d in compare_configs(new, {**old, "rope_theta": 1e4})] == ["rope_parameters.rope_theta"]


def test_an_unknown_architecture_is_compared_as_it_is() -> None:
    """A field that only one file states may be the other's default."""
    ours = {"model_type": "never_heard_of", "rope_theta": 1.0}
    assert [d.outcome for d in compare_configs(ours, {**ours, "rope_theta": 2.0})] == ["refuse"]
    assert [d.outcome for d in compare_configs(ours, {**ours, "hidden_act": "silu"})] == ["warn"]


def swapped(table: dict[str, Any]) -> None:
    vocab = table["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def replaced(table: dict[str, Any]) -> None:
    table["model"]["vocab"]["new"] = table["model"]["vocab"].pop("a")


def added(token: str, row: int) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        table["added_tokens"].append({"id": row, "content": token, **flags})

    return change


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "two ids swapped": (swapped, r"other ids than the base's does: 'a' is \d+, not \d+"),
    "another token in a row": (replaced, r"row \d+ is 'new', not 'a'"),
    "merges": (lambda t: t["model"]["merges"].append(["a", "b"]), "merges differ"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_token_ids_are_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    change, words = TOKENIZERS[name]
    tuned = edited(base, tmp_path / "tuned", "tokenizer.json", change)
    with pytest.raises(CpiftError, match=words):
        check_compatible(open_checkpoint(base), {"a": open_checkpoint(tuned)})


def spare(folder: Path, rows: int = 6) -> Path:
    """The model with rows in its embedding that have no token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + rows)
    model.save_pretrained(folder)
    return folder


def test_tokens_of_their_own_in_one_spare_row(base: Path, tmp_path: Path) -> None:
    """Both named; one alone, or both with the same token, is a warning; a place kept free may be taken."""
    origin = spare(shutil.copytree(base, tmp_path / "origin"))
    row = len(json.loads((origin / "tokenizer.json").read_text())["model"]["vocab"])
    models = {
        name: open_checkpoint(edited(origin, tmp_path / name, "tokenizer.json", added(token, row)))
        for name, token in [("a", "<call>"), ("b", "<think>"), ("c", "<call>")]
    }
    start = open_checkpoint(origin)
    with pytest.raises(CpiftError, match=rf"a and b both added a token in row {row} .*'<call>' and '<think>'"):
        check_compatible(start, models)
    (first, _) = check_compatible(start, {"a": models["a"], "c": models["c"]})
    assert f"'<call>' (row {row})" in first
    kept = open_checkpoint(edited(origin, tmp_path / "kept", "tokenizer.json", added("<|reserved_0|>", row)))
    assert f"'<call>' (row {row})" in check_compatible(kept, {"a": models["a"]})[0]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer"),
        ("tokenizer.json", lambda t: t["added_tokens"][0].update(lstrip=True), "the flags of"),
        ("tokenizer_config.json", lambda t: t.update(eos_token="<|pad|>"), "eos_token"),
        ("generation_config.json", lambda t: t.update(temperature=0.1), "temperature is 0.1"),
    ],
)
def test_other_settings_are_a_warning_by_name(
    base: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    tuned = edited(base, tmp_path / "tuned", file, change)
    (warning,) = check_compatible(open_checkpoint(base), {"a": open_checkpoint(tuned)})
    assert words in warning


def test_another_chat_template_is_a_warning(base: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(base, tmp_path / "tuned")
    (tuned / "chat_template.jinja").write_text("another")
    assert "chat template" in check_compatible(open_checkpoint(base), {"a": open_checkpoint(tuned)})[0]


def sentencepiece(source: Path, target: Path, content: bytes, tokens: dict[str, int]) -> Path:
    """The tokenizer as SentencePiece's own file and a list of added tokens."""
    shutil.copytree(source, target)
    (target / "tokenizer.json").unlink()
    (target / "tokenizer.model").write_bytes(content)
    (target / "added_tokens.json").write_text(json.dumps(tokens))
    return target


def test_tokenizers_in_older_files(base: Path, tmp_path: Path) -> None:
    """SentencePiece's file is compared as a whole, added tokens by name; two kinds of files are not compared."""
    start = open_checkpoint(sentencepiece(base, tmp_path / "s", b"pieces", {}))
    one, other = (
        open_checkpoint(sentencepiece(base, tmp_path / name, b"pieces", {f"<{name}>": 258}))
        for name in ("one", "other")
    )
    assert "'<one>' (row 258)" in check_compatible(start, {"a": one})[0]
    with pytest.raises(CpiftError, match="'<one>' and '<other>'"):
        check_compatible(start, {"a": one, "b": other})
    unlike = open_checkpoint(sentencepiece(base, tmp_path / "unlike", b"others", {}))
    with pytest.raises(CpiftError, match="sentencepiece differ"):
        check_compatible(start, {"a": unlike})
    assert "files of another kind" in check_compatible(open_checkpoint(base), {"a": start})[0]
