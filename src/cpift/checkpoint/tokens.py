"""The tokens of a checkpoint's tokenizer by row of the embedding, and how two tokenizers differ."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpift.checkpoint.files import read_json
from cpift.errors import CpiftError

# A token of such a name is a place that the base keeps free: another token may take it.
_SPARE = re.compile(r"reserved|unused|placeholder|extra_id|dummy", re.IGNORECASE)
# Fields of tokenizer_config.json that repeat tokenizer.json, or say where or by what the files were written.
_BOOKKEEPING = (
    "name_or_path",
    "transformers_version",
    "tokenizer_class",
    "backend",
    "is_local",
    "local_files_only",
    "processor_class",
    "added_tokens_decoder",
    "special_tokens_map_file",
    "tokenizer_file",
    "auto_map",
    "chat_template",
    "extra_special_tokens",
    "additional_special_tokens",
    "padding_side",
    "truncation_side",
    "legacy",
    "sp_model_kwargs",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "use_default_system_prompt",
    "max_length",
    "pad_to_multiple_of",
    "stride",
    "truncation_strategy",
    "pad_token_type_id",
    "is_fast",
)
# Rules by which text is cut into tokens; where both tokenizers state them, they must be the same.
_RULES = ("merges", "model.type", "scores", "sentencepiece")


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as its files have it: token to row, and everything else that decides how text is cut."""

    ids: dict[str, int]
    by_id: dict[int, str]
    rest: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Tokens | None:
        """Of the folder of a checkpoint (or of its weights file); None where no file there lists the tokens."""
        folder = path if path.is_dir() else path.parent
        pieces = sorted(folder.glob("*.model"))
        file = next((folder / n for n in ("tokenizer.json", "vocab.json") if (folder / n).is_file()), None)
        if file is None and not pieces:
            return None
        settings, extra = _settings(folder / "tokenizer_config.json"), folder / "added_tokens.json"
        added = _table(extra) if extra.is_file() and (file is None or file.name == "vocab.json") else {}
        if file is None:  # SentencePiece's own file: its tokens are compared as a whole, added ones by name
            digests = [hashlib.sha256(piece.read_bytes()).hexdigest() for piece in pieces]
            rest = {"sentencepiece": digests, **settings}
            return cls(added, {row: token for token, row in added.items()}, rest)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        core = _parsed(file, digest, tuple(sorted(added.items())))
        return cls(core.ids, core.by_id, {**core.rest, **settings})


_known: dict[tuple[str, tuple[tuple[str, int], ...]], Tokens] = {}


def _parsed(file: Path, digest: str, added: tuple[tuple[str, int], ...]) -> Tokens:
    """Kept by content: the tokenizers of all checkpoints of a family are most often one file."""
    key = (digest, added)
    if key not in _known:
        if len(_known) > 16:
            _known.clear()
        _known[key] = _read(file, added)
    return _known[key]


def _read(file: Path, added: tuple[tuple[str, int], ...]) -> Tokens:
    table = _table(file)
    if file.name == "vocab.json":
        ids = {**table, **dict(added)}
        return Tokens(ids, {row: token for token, row in ids.items()}, {})
    model = table.get("model")
    if not isinstance(model, dict):
        raise CpiftError(f"{file}: is no tokenizer (it has no model)")
    vocab = model.get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: row for row, entry in enumerate(vocab)}
    entries = table.get("added_tokens") or []
    ids |= {entry["content"]: entry["id"] for entry in entries}
    if not all(isinstance(row, int) for row in ids.values()):
        raise CpiftError(f"{file}: is no tokenizer (an id is no whole number)")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    rest = {f"model.{key}": value for key, value in model.items() if key not in ("vocab", "merges")}
    rest |= {key: table.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    rest["merges"] = hashlib.sha256(repr(merges).encode()).hexdigest()
    if not isinstance(vocab, dict):
        rest["scores"] = hashlib.sha256(repr([entry[1] for entry in vocab]).encode()).hexdigest()
    rest["added_tokens"] = {
        entry["content"]: {key: value for key, value in entry.items() if key != "content"} for entry in entries
    }
    return Tokens(ids, {row: token for token, row in ids.items()}, rest)


def _table(file: Path) -> dict[str, Any]:
    table = read_json(file)
    if not isinstance(table, dict):
        raise CpiftError(f"{file}: is no table")
    return table


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    return {
        f"tokenizer_config.{key}": value["content"] if isinstance(value, dict) and "content" in value else value
        for key, value in _table(file).items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in _BOOKKEEPING)
    }


def compare_tokens(ours: Tokens, theirs: Tokens, where: Path) -> list[str]:
    """How the tokens of two tokenizers differ.

    Args:
        ours: the base's.
        theirs: of a checkpoint made from it.
        where: of that checkpoint, for the message.

    Returns:
        Tokens that are new, and tokens that are gone, as texts.

    Raises:
        CpiftError: a token has another id, a row another token, or text is cut by other rules.
    """
    if ("sentencepiece" in ours.rest) != ("sentencepiece" in theirs.rest):
        return ["its tokenizer is stored in files of another kind, and was not compared"]
    if ours.by_id is not theirs.by_id:
        moved = [t for t, row in theirs.ids.items() if ours.ids.get(t, row) != row]
        if moved:
            pairs = [f"{t!r} is {theirs.ids[t]}, not {ours.ids[t]}" for t in moved[:3]]
            more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
            raise CpiftError(
                f"{where}: its tokenizer gives tokens other ids than the base's does: {', '.join(pairs)}{more}; rows of the "
                "embedding mean other tokens. Take checkpoints that were trained with one tokenizer"
            )
        taken = [
            row
            for row, token in theirs.by_id.items()
            if row in ours.by_id and ours.by_id[row] != token and not _SPARE.search(ours.by_id[row])
        ]
        if taken:
            pairs = [f"row {row} is {theirs.by_id[row]!r}, not {ours.by_id[row]!r}" for row in taken[:3]]
            raise CpiftError(
                f"{where}: its tokenizer has other tokens in rows of the base's: {', '.join(pairs)}"
                f"{f' and {len(taken) - 3} more' if len(taken) > 3 else ''}; take checkpoints that were trained with one tokenizer"
            )
    for field in _RULES:
        left, right = ours.rest.get(field), theirs.rest.get(field)
        if left is not None and right is not None and left != right:
            raise CpiftError(
                f"{where}: its tokenizer cuts text by other rules than the base's ({field} differ); "
                "take checkpoints that were trained with one tokenizer"
            )
    new = new_tokens(ours, theirs)
    gone = [t for t in ours.ids if t not in theirs.ids and ours.ids[t] not in theirs.by_id]
    texts = []
    if new:
        texts.append(f"tokens of its own: {_named(new)}")
    if gone:
        texts.append(f"tokens left out: {_named({t: ours.ids[t] for t in gone})}")
    return texts


def new_tokens(ours: Tokens, theirs: Tokens) -> dict[str, int]:
    """Tokens that the base does not have, with their rows."""
    if ours.by_id is theirs.by_id:
        return {}
    return {t: row for t, row in sorted(theirs.ids.items(), key=lambda item: item[1]) if t not in ours.ids}


def rest_of_tokenizer(ours: Tokens, theirs: Tokens) -> list[str]:
    """The fields beside the tokens in which two tokenizers differ; a field that one does not have is its default."""
    fields = []
    for field in sorted({*ours.rest, *theirs.rest} - {*_RULES, "added_tokens"}):
        left, right = ours.rest.get(field), theirs.rest.get(field)
        default = field.startswith(("tokenizer_config.", "model.")) and not field.endswith("_token")
        if left != right and not (default and (left is None or right is None)):
            fields.append(field)
    left, right = ours.rest.get("added_tokens", {}), theirs.rest.get("added_tokens", {})
    flags = [token for token in left if token in right and left[token] != right[token]]
    if flags:
        fields.append(f"the flags of {', '.join(map(repr, flags[:3]))}")
    return [f"its tokenizer differs in {', '.join(fields)}"] if fields else []


def chat_template(path: Path) -> Any:
    """The chat template that lies with a checkpoint, wherever it is written; None where there is none."""
    folder = path if path.is_dir() else path.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = _table(folder / name).get("chat_template")
            if template is not None:
                return template
    return None


def _named(tokens: Mapping[str, int]) -> str:
    texts = [f"{token!r} (row {row})" for token, row in tokens.items()]
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
