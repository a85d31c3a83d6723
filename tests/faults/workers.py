"""A Ray worker killed in the midst of a stage of each kind that it makes."""

from __future__ import annotations

import threading
from pathlib import Path

from engine_jobs import kill_a_worker, two_nodes
from tiny_run import Listener, same, stamps

from cpift.distributed.engine import make_engine
from cpift.runs.pipeline import run

STAGES = ("01-probe/upper", "04-backbone/2", "06-refine/1", "07-evaluate/base/reverse")


def kill_worker(recipe: Path, whole: Path, out: Path, stage: str) -> None:
    """Kill the worker that makes ``stage`` as soon as it has begun; the run must end as ``whole`` did, bit for bit."""
    heard, log = Listener(), out / "logs" / f"{stage.replace('/', '-')}.log"
    killer = threading.Thread(target=kill_a_worker, args=[log], daemon=True)
    killer.start()
    with two_nodes() as address:
        run(recipe, out, reporter=heard, engine=make_engine("ray", address=address))
    killer.join(1)
    assert not killer.is_alive(), f"no worker made {stage}"
    assert any(text.startswith(f"{stage}  WorkerCrashedError") for text in heard.said), heard.said
    assert set(stamps(out)) == set(stamps(whole))
    models = [f.parent.relative_to(whole) for f in whole.glob("stages/**/model.safetensors")]
    assert all(same(out / model, whole / model) for model in [*models, Path("model")]), "other weights"
    assert not list(out.rglob("*.partial")), "a leftover"
