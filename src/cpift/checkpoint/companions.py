"""What lies beside the weights of a fused model, and from where: configuration, tokenizer, chat template, generation.

A fine-tuned model answers as it does with the tokenizer, chat template and stop tokens that it was trained with. Where
all that were trained agree, the fused model gets theirs; where they do not, the base's, and a warning names the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpift.checkpoint.files import read_json
from cpift.checkpoint.tokens import chat_template
from cpift.checkpoint.writer import check_companions, copy_companions

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")  # fmt: skip
TEMPLATE = ("chat_template.jinja", "chat_template.json")
TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")
GENERATION = ("generation_config.json",)
# Who wrote the files, and with which version; no part of what they mean.
_IGNORED = {"transformers_version", "name_or_path", "_from_model_config", "is_local", "local_files_only", "backend"}


@dataclass
class Companions:
    """From which folder each group of files is taken; ``warnings`` say where the trained models disagree."""

    base: Path
    home: Path
    tokenizer: Path
    template: Path
    generation: Path
    notes: dict[str, str]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def choose(cls, base: Path, backbone: Path | None, tuned: Mapping[str, Path]) -> Companions:
        """Compare the files of all trained models.

        Args:
            base: folder of the base.
            backbone: folder of the backbone, where there is one of its own. It gives the configuration.
            tuned: folders of the fine-tuned models, by name.

        Raises:
            CpiftError: a file is damaged, or a link that leads out of its folder.
        """
        home = backbone or base
        check_companions(base, home)
        trained = {**({"the backbone": backbone} if backbone else {}), **tuned}
        chosen, notes, warnings = {}, {}, []
        for group, signature in (
            ("tokenizer", _tokenizer),
            ("chat template", _template),
            ("generation config", _generation),
        ):
            found = {name: seen for name, folder in trained.items() if (seen := signature(folder)) is not None}
            ours = signature(home)
            kinds = {seen for seen in found.values() if seen != ours}
            chosen[group] = home
            if kinds and all(seen != ours for seen in found.values()) and len(kinds) == 1:
                name = next(iter(found))
                chosen[group] = trained[name]
                notes[group] = f"of {', '.join(found)}, which agree; the base's is another"
            elif kinds:
                own = "the backbone's" if backbone else "the base's"
                unlike = [name for name, seen in found.items() if seen != ours]
                notes[group] = own
                warnings.append(
                    f"the {group} of {', '.join(unlike)} is another than {own}, which the fused model gets "
                    f"({_files(group)}); copy that of the model whose prompts you use"
                )
        return cls(
            base, home, chosen["tokenizer"], chosen["chat template"], chosen["generation config"], notes, warnings
        )

    def write(self, target: Path) -> None:
        """Copy all files to the new checkpoint."""
        for folder in (self.base, self.home):
            copy_companions(folder, target)
        if self.tokenizer != self.home:
            _replace(self.tokenizer, target, TOKENIZER)
        if self.template != self.home or self.tokenizer != self.home:
            _replace(self.template, target, TEMPLATE, TEMPLATE_FOLDERS)
            _template_within(self.template, target)
        if self.generation != self.home:
            _replace(self.generation, target, GENERATION)


def _files(group: str) -> str:
    return {"tokenizer": "tokenizer.json", "chat template": "chat_template.jinja"}.get(group, "generation_config.json")


def _replace(source: Path, target: Path, names: tuple[str, ...], folders: tuple[str, ...] = ()) -> None:
    for name in names:
        (target / name).unlink(missing_ok=True)
    for name in folders:
        for file in (target / name).glob("*"):
            file.unlink()
    copy_companions(source, target, lambda file: file in names or file.split("/")[0] in folders)


def _template_within(source: Path, target: Path) -> None:
    """Older checkpoints have the template in ``tokenizer_config.json``; there it goes along with the tokenizer."""
    file, other = target / "tokenizer_config.json", source / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    wanted = read_json(other).get("chat_template") if other.is_file() else None
    if settings.get("chat_template") != wanted:
        settings.pop("chat_template", None)
        if wanted is not None:
            settings["chat_template"] = wanted
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _tokenizer(folder: Path) -> str | None:
    found: dict[str, Any] = {}
    for name in TOKENIZER:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            found[name] = file.read_bytes().hex()
            continue
        table = read_json(file)
        if name == "tokenizer_config.json" and isinstance(table, dict):
            table = {key: value for key, value in table.items() if key not in {*_IGNORED, "chat_template"}}
        if name == "tokenizer.json" and isinstance(table, dict):
            table = {key: value for key, value in table.items() if key not in ("padding", "truncation")}
        found[name] = table
    core = {name: value for name, value in found.items() if name != "tokenizer_config.json"}
    return json.dumps(found, sort_keys=True) if core else None


def _template(folder: Path) -> str | None:
    found = chat_template(folder)
    return None if found is None else json.dumps(found, sort_keys=True)


def _generation(folder: Path) -> str | None:
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    table = read_json(file)
    kept = {key: value for key, value in table.items() if key not in _IGNORED} if isinstance(table, dict) else table
    return json.dumps(kept, sort_keys=True)
