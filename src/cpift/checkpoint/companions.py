"""What lies beside the weights of a fused model, and from where: configuration, tokenizer, chat template, generation.

A fine-tuned model answers as it does with the tokenizer, chat template and stop tokens that it was trained with. Where
all that were trained agree, the fused model gets theirs; where they do not, the base's, and a warning names the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpift.checkpoint.files import read_json
from cpift.checkpoint.tokens import chat_template
from cpift.checkpoint.writer import check_companions, copy_companions

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TEMPLATE = ("chat_template.jinja", "chat_template.json")
TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")
GENERATION = ("generation_config.json",)
# Who wrote the files, and with which version; no part of what they mean.
_IGNORED = {"transformers_version", "name_or_path", "_from_model_config", "is_local", "local_files_only", "backend"}


@dataclass
class Companions:
    """From which folder each group of files is taken; ``warnings`` say where the trained models disagree.

    base: folders of the base, later ones first asked. home: those of the model that gives the configuration.
    """

    base: Sequence[Path]
    home: Sequence[Path]
    tokenizer: Path
    template: Path
    generation: Path
    notes: dict[str, str]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def choose(
        cls, base: Sequence[Path], backbone: Sequence[Path] | None, tuned: Mapping[str, Sequence[Path]]
    ) -> Companions:
        """Compare the files of all trained models.

        Args:
            base: folders of the base: one, or for an adapter its base's and its own.
            backbone: folders of the backbone, where there is one of its own. It gives the configuration.
            tuned: folders of the fine-tuned models, by name.

        Raises:
            CpiftError: a file is damaged, or a link that leads out of its folder.
        """
        home = backbone or base
        check_companions(*base, *home)
        trained = {**({"the backbone": backbone} if backbone else {}), **tuned}
        chosen, notes, warnings = {}, {}, []
        for group, signature in (
            ("tokenizer", _tokenizer),
            ("chat template", _template),
            ("generation config", _generation),
        ):
            signed = {name: _nearest(signature, folders) for name, folders in trained.items()}
            signatures = {name: content for name, (content, _) in signed.items() if content is not None}
            ours, chosen[group] = _nearest(signature, home)
            kinds = {content for content in signatures.values() if content != ours}
            if kinds and all(content != ours for content in signatures.values()) and len(kinds) == 1:
                name = next(iter(signatures))
                chosen[group] = signed[name][1]
                notes[group] = f"of {', '.join(signatures)}, which agree; the base's is another"
            elif kinds:
                own = "the backbone's" if backbone else "the base's"
                unlike = [name for name, content in signatures.items() if content != ours]
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
        for folder in (*self.base, *self.home):
            copy_companions(folder, target)
        if self.tokenizer not in self.home:
            _replace(self.tokenizer, target, TOKENIZER)
        if self.template not in self.home or self.tokenizer not in self.home:
            _replace(self.template, target, TEMPLATE, TEMPLATE_FOLDERS)
            _template_within(self.template, target)
        if self.generation not in self.home:
            _replace(self.generation, target, GENERATION)


def _nearest(signature: Callable[[Path], str | None], folders: Sequence[Path]) -> tuple[str | None, Path]:
    """What the last folder says that says anything, and that folder: an adapter's own files come before its base's."""
    for folder in reversed(folders):
        content = signature(folder)
        if content is not None:
            return content, folder
    return None, folders[-1]


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
    contents: dict[str, object] = {}
    for name in TOKENIZER:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            contents[name] = file.read_bytes().hex()
            continue
        table = read_json(file)
        if name == "tokenizer_config.json" and isinstance(table, dict):
            table = {key: value for key, value in table.items() if key not in {*_IGNORED, "chat_template"}}
        if name == "tokenizer.json" and isinstance(table, dict):
            table = {key: value for key, value in table.items() if key not in ("padding", "truncation")}
        contents[name] = table
    core = {name: value for name, value in contents.items() if name != "tokenizer_config.json"}
    return json.dumps(contents, sort_keys=True) if core else None


def _template(folder: Path) -> str | None:
    template = chat_template(folder)
    return None if template is None else json.dumps(template, sort_keys=True)


def _generation(folder: Path) -> str | None:
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    table = read_json(file)
    kept = {key: value for key, value in table.items() if key not in _IGNORED} if isinstance(table, dict) else table
    return json.dumps(kept, sort_keys=True)
