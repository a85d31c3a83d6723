"""The demo's probes on a Ray cluster of two nodes, a worker killed on the way: the same weights as by the local engine?

    .venv/bin/python tests/faults/ray_demo.py       # about ten minutes on 2 cores; needs 4 GB of disk

Says what was side by side, what the kill cost, and whether the weights have the same bits; exit code 1 where they have not.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from engine_jobs import kill_a_worker, two_nodes
from tiny_run import Listener, same

from cpift.distributed.engine import Engine, make_engine
from cpift.runs.pipeline import run

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_long.yaml"
VICTIM, AFTER = "calendar", 60  # seconds: in the midst of its training


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        local, ray = Path(folder) / "local", Path(folder) / "ray"
        _made("local engine, two jobs of one thread", local, make_engine("local", jobs=2))
        log = ray / "logs" / f"01-probe-{VICTIM}.log"
        threading.Thread(target=kill_a_worker, args=[log, AFTER], daemon=True).start()
        with two_nodes() as address:
            heard = _made("Ray, two nodes of one core", ray, make_engine("ray", address=address))
        killed = [text for text in heard.said if "WorkerCrashedError" in text]
        print("said of the kill:", killed, flush=True)
        probes = sorted(p.name for p in (local / "stages/01-probe").iterdir() if p.is_dir())
        equal = {p: same(local / "stages/01-probe" / p, ray / "stages/01-probe" / p) for p in probes}
        print("same bits:", equal, flush=True)
        return 0 if killed and all(equal.values()) and len(equal) == 3 else 1


def _made(what: str, out: Path, engine: Engine | None) -> Listener:
    heard, began = Listener(), time.time()
    run(RECIPE, out, until="probe", reporter=heard, engine=engine)
    print(f"{what}: {time.time() - began:.0f} s", flush=True)
    for log in sorted((out / "logs").glob("01-probe-*.log")):
        tries = [line for line in log.read_text().splitlines() if line.startswith("== ")]
        ended = time.strftime(
            "%H:%M:%S", time.gmtime((out / f"stages/01-probe/{log.stem[9:]}/stage.json").stat().st_mtime)
        )
        print(f"  {log.stem}: {'; '.join(tries)}; done {ended}", flush=True)
    return heard


if __name__ == "__main__":
    sys.exit(main())
