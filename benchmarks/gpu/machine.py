"""What is there: the card and its speed, the driver, versions, and which of the project's libraries import."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
import tomllib

from step import ROOT, Step, cores, device, is_cuda, one_line, release, run, synchronize

# A name out of each library that loads its parts late: the library alone would import without it.
PARTS = {
    "trl": "SFTTrainer",
    "transformers": "AutoModelForCausalLM",
    "datasets": "Dataset",
    "accelerate": "Accelerator",
}
MODULES = {"pyyaml": "yaml"}  # where the library's name is not the module's
# Only looked for, not imported: some take long.
EXTRAS = (
    "peft",
    "gguf",
    "reasoning_gym",
    "bitsandbytes",
    "torchao",
    "flash_attn",
    "liger_kernel",
    "vllm",
    "pytest",
    "hypothesis",
)
OURS = ("freeze", "identify", "fuse", "run", "FreezeCallback", "evaluate")


def work(step: Step) -> None:
    step.record.add("python", platform.python_version())
    step.record.add("cores", cores())
    step.record.add("main memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, "GiB")
    step.record.add("free disk for checkpoints", shutil.disk_usage(step.scratch).free / 1e9, "GB")
    _card(step)
    found = [f"{name} {version}" for name in EXTRAS if (version := _version(name))]
    step.record.add("optional libraries", ", ".join(found) or "none")
    for text in _dependencies():
        _library(step, text)
    _ours(step)


def _card(step: Step) -> None:
    import torch

    here = device()
    if is_cuda():
        properties = torch.cuda.get_device_properties(0)
        step.record.add("card", properties.name)
        step.record.add("device memory", properties.total_memory / 2**30, "GiB")
        step.record.add("devices", torch.cuda.device_count())
        step.record.add("torch's CUDA", str(torch.version.cuda))
        step.record.add("bf16", torch.cuda.is_bf16_supported())
    else:
        step.record.add("card", str(here) if here.type != "cpu" else "none, a CPU")
    driver = _driver()
    if driver:
        step.record.add("driver", driver)
    size = 256 if step.tiny or not is_cuda() else 8192
    a = torch.randn(size, size, device=here, dtype=torch.bfloat16)
    a @ a
    synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ a
    synchronize()
    seconds = time.perf_counter() - began
    step.record.add("bf16 matrix product", 20 * size**3 / seconds / 1e12, "TFLOP/s", f"{size}³, 10 products")
    del a
    release()


def _driver() -> str:
    """The driver's version, "" where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def _dependencies() -> list[str]:
    """What pyproject.toml asks for, to train as well."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    return [text for text in asked if not text.startswith("cpift[")]


def _version(name: str) -> str:
    """Of an installed library, "" where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _library(step: Step, requirement: str) -> None:
    """Does it import, in which version, and is that a version that is asked for?"""
    from packaging.requirements import Requirement

    need = Requirement(requirement)
    version = _version(need.name)
    notes = []
    if version and not need.specifier.contains(version, prereleases=True):
        notes.append(f"not {need.specifier}, as pyproject.toml asks for")
    began = time.perf_counter()
    try:
        module = importlib.import_module(MODULES.get(need.name, need.name))
        part = PARTS.get(need.name)
        if part:
            getattr(module, part)
    except Exception as error:  # a library that does not fit the others may raise anything
        notes.append(f"does not import: {one_line(error)}")
        step.record.add(need.name, version or "missing", note="; ".join(notes))
        return
    seconds = time.perf_counter() - began
    if seconds > 1:
        notes.append(f"imported in {seconds:.1f} s")
    step.record.add(need.name, version or "of unknown version", note="; ".join(notes))


def _ours(step: Step) -> None:
    """Does what the package offers import?"""
    for name in OURS:
        try:
            getattr(importlib.import_module("cpift"), name)
        except Exception as error:
            step.record.add(f"cpift.{name}", "does not import", note=one_line(error))
        else:
            step.record.add(f"cpift.{name}", "imports")


if __name__ == "__main__":
    run(work)
