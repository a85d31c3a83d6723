#!/usr/bin/env python3
"""Counts what docs/design.md shows of the house: flat modules, uses of Any, imports inside functions, file and function lengths."""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "cpift"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports_in_functions(tree: ast.Module) -> int:
    """Import statements below a function, each counted once."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, FUNCTIONS)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    return len(inside)


def uses_of_any(tree: ast.Module) -> int:
    """The name ``Any`` in annotations and elsewhere, its import left out."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def main(source: Path) -> None:
    """Print one line a figure."""
    files = sorted(source.rglob("*.py"))
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    lines = {file: text.count("\n") for file, text in texts.items()}
    thousand = sum(lines.values()) / 1000
    lengths = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
    )
    anys = sum(map(uses_of_any, trees.values()))
    local = sum(imports_in_functions(tree) for file, tree in trees.items() if "cli" not in file.parts)
    print(f"modules flat in the root: {sum(file.parent == source for file in files)}")
    print(f"files, thousand lines: {len(files)}, {thousand:.1f}")
    print(f"file lines, median and longest: {statistics.median(lines.values()):.0f}, {max(lines.values())}")
    print(
        f"function lines, median and 90th percentile: {statistics.median(lengths):.0f}, {lengths[len(lengths) * 9 // 10]}"
    )
    print(f"Any in 1,000 lines: {anys / thousand:.1f}")
    print(f"imports inside functions in 1,000 lines, outside cli: {local / thousand:.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
