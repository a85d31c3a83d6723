"""What a recipe names and this machine lacks, found before the libraries of training are imported."""

from __future__ import annotations

import os
from pathlib import Path

from cpift.data.files import is_file_name, missing
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.recipe.template import PLACEHOLDER


def check_presence(recipe: Recipe) -> None:
    """Look for the model and the files of rows, and read none of them.

    Args:
        recipe: its paths resolved, as :meth:`Recipe.load` leaves them.

    Raises:
        CpiftError: the model is still the template's placeholder, or a file of rows is missing; names the key.
    """
    if Path(recipe.model).name == PLACEHOLDER and not os.path.lexists(recipe.model):
        raise CpiftError(f"model: {PLACEHOLDER} stands for yours; give a folder, a hub id, or a GGUF file")
    for name, task in recipe.tasks.items():
        for value in (task.train, task.eval):
            for source in value if isinstance(value, list) else [value]:
                path = source if isinstance(source, str) else getattr(source, "path", None)
                if isinstance(path, str) and is_file_name(path) and not os.path.lexists(path):
                    raise CpiftError(f"tasks.{name}: {missing(Path(path))}")
