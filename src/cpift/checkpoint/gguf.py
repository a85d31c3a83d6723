"""A checkpoint as a GGUF file, by llama.cpp's own converter: a script of its repository, which no package brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cpift.errors import CpiftError

VARIABLE = "LLAMA_CPP"
SCRIPT = "convert_hf_to_gguf.py"


def converter() -> Path | None:
    """llama.cpp's converter: in the folder that ``LLAMA_CPP`` names, or on the path. None where it is not installed."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder) / SCRIPT if (Path(folder) / SCRIPT).is_file() else None
    found = shutil.which(SCRIPT)
    return Path(found) if found else None


def write_gguf(folder: Path, out: Path) -> None:
    """Convert a whole checkpoint.

    Args:
        folder: with weights, configuration and tokenizer.
        out: the file to write.

    Raises:
        CpiftError: no converter, with the lines that get it and convert; or its own error.
    """
    if out.exists():
        raise CpiftError(f"{out}: exists; name another file, or remove it")
    script = converter()
    if script is None:
        raise CpiftError(
            f"--format gguf: llama.cpp's converter is not here. These two lines do it: git clone --depth 1 "
            f"https://github.com/ggml-org/llama.cpp && pip install -r llama.cpp/requirements.txt; "
            f"python llama.cpp/{SCRIPT} {folder} --outfile {out}. Or set {VARIABLE} to that folder"
        )
    partial = out.with_name(f".{out.name}.partial")
    command = [sys.executable, str(script), str(folder), "--outfile", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not partial.is_file():
        partial.unlink(missing_ok=True)
        raise CpiftError(f"{folder}: llama.cpp's converter failed: {' '.join(done.stderr.split())[-300:]}")
    partial.replace(out)
