"""The project's own tests of freezing, selection and fusion, with this machine's processor and library versions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from step import ROOT, Step, need, run

PATTERNS = ("test_freez*.py", "test_selection*.py", "test_fus*.py")


def work(step: Step) -> None:
    need("pytest", "numba", "xxhash", "transformers", "safetensors")
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of whatever else is installed there
    files = sorted(file for pattern in PATTERNS for file in (ROOT / "tests").rglob(pattern))
    settings = step.scratch / "pytest.ini"  # the project's own settings want plug-ins that may not be here
    settings.write_text("[pytest]\nmarkers =\n    real: needs a model\n    deepspeed: needs DeepSpeed\n")
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(settings),
        "--rootdir",
        str(ROOT),
        "-m",
        "not real and not deepspeed",
    ]
    arguments += ["--basetemp", str(step.scratch / "pytest"), "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    if step.tiny:
        arguments += ["-k", "after_the_context or percent_is_the_decimal"]
    counts = Counts(step)
    pytest.main([*arguments, *map(str, files)], plugins=[counts])
    counts.report()


class Counts:
    """A plug-in of pytest that counts, keeps what failed, and stops when the time is up."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._passed = self._skipped = self._collected = self._done = 0

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
            self._step.record.add(Path(report.nodeid).name, "not run", note=reason.removeprefix("E").strip())
            if "ModuleNotFoundError" not in reason:  # a missing library is no fault of the project
                self._step.record.fault(f"{report.nodeid} could not be collected: {reason}")

    def pytest_collection_finish(self, session: Any) -> None:
        self._collected = len(session.items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            error = str(getattr(report.longrepr, "reprcrash", None) and report.longrepr.reprcrash.message)
            self._step.record.fault(f"{report.nodeid}: {' '.join(error.split())[:200]}")
        elif report.skipped:
            self._skipped += 1
        elif report.when == "call":
            self._passed += 1

    def pytest_runtest_protocol(self, item: Any) -> None:
        self._done += 1
        if self._step.left() < 0:
            item.session.shouldstop = "the time is up"

    def report(self) -> None:
        self._step.record.add(
            "tests passed", self._passed, note=f"{self._skipped} skipped, {self._collected} collected"
        )
        if self._done < self._collected:
            self._step.record.leave_out("the other tests", f"{self._collected - self._done} of them: the time was up")


if __name__ == "__main__":
    run(work)
