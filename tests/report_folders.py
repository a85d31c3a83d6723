"""Run and comparison folders made of random numbers, JSON only, for tests of the report. No fixtures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from cpift.files.findings import finding
from cpift.method.group import components
from cpift.recipe.recipe import Recipe

LEAKED = finding("evaluation-in-training", "task x: 3 of 60 evaluation rows also stand in the training rows")
VERSIONS = {"python": "3.11.7", "cpift": "0.1.0", "torch": "2.13.0"}
PARTS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
LAYERS = 4


def sizes() -> dict[str, int]:
    """Elements of each parameter of the model that was never there."""
    inside = {f"model.layers.{i}.{p}.weight": 10 if "norm" in p else 4000 for i in range(LAYERS) for p in PARTS}
    return {"model.embed_tokens.weight": 20000, "model.norm.weight": 10, **inside}


def recipe(tasks: list[str], metrics: dict[str, str] | None = None) -> Recipe:
    """Of generated tasks, so that nothing need be there."""
    return Recipe.parse(
        {
            "model": "/secret/place/SmolLM2.gguf",
            "tasks": {
                t: {"generate": "gcd", "train": 100, "eval": 60, "metric": (metrics or {}).get(t)} for t in tasks
            },
            "training": {"learning_rate": 1e-4},
        }
    )


def made_run(
    folder: Path,
    tasks: list[str],
    *,
    until: str = "",
    error: str = "",
    seed: int = 0,
    metrics: dict[str, str] | None = None,
    change: Any = None,
) -> Path:
    """A run; ``until``: the first stage (the start of its name) that is not there; ``error``: it failed in it."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe(tasks, metrics).dump())
    log: list[dict[str, Any]] = [
        {"event": "start", "origins": {"model": "recipe", "training.learning_rate": "command line"}}
    ]
    going = True

    def stage(
        name: str, files: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **facts: Any
    ) -> None:
        nonlocal going
        going = going and not (until and name.startswith(until))
        if not going:
            return
        place = folder / "stages" / name
        place.mkdir(parents=True)
        for file, content in (files or {}).items():
            (place / file).write_text(json.dumps(content))
        full = {
            "seconds": rng.uniform(1, 90),
            "peak_memory": 5e9,
            "disk": 538_000_000,
            "seed": 0,
            "versions": VERSIONS,
            "findings": [],
            **facts,
        }
        made = {
            "key": "k",
            "settings": settings or {},
            "needs": {},
            "outputs": dict.fromkeys(files or {}, "h"),
            "facts": full,
        }
        (place / "stage.json").write_text(json.dumps(made))
        log.append({"event": "stage", "stage": name})

    def trained(steps: int) -> dict[str, Any]:
        losses = [[i, 3.0 / i + rng.uniform(0, 0.3), 1e-4 * (1 - i / steps)] for i in range(1, steps + 1)]
        return {
            "steps": steps,
            "tokens": 900 * steps,
            "train_seconds": 50.0,
            "losses": losses,
            "rows": 100,
            "frozen": 0,
        }

    stage("00-base")
    for task in tasks:
        stage(
            f"00-tasks/{task}",
            train_rows=100,
            eval_rows=60,
            metric="exact_match",
            findings=[LEAKED.to_dict()] if task == tasks[-1] else [],
        )
    for task in tasks:
        stage(f"01-probe/{task}", **trained(20))
    count = sum(sizes().values()) // 100
    for task in tasks:
        weights = {n: rng.random() * s for n, s in sizes().items()}
        spread = {n: int(count * w / sum(weights.values())) for n, w in weights.items()}
        stage(
            f"02-identify/{task}",
            count=count,
            total=sum(sizes().values()),
            threshold=1e-3,
            median=2.6e-4,
            zero_share=0.0004,
            by_parameter=spread,
            sizes=sizes(),
        )
    n = len(tasks)
    jaccard = [[1.0] * n for _ in tasks]
    signs = [[1.0] * n for _ in tasks]
    for i in range(n):
        for j in range(i):
            jaccard[i][j] = jaccard[j][i] = rng.uniform(0.01, 0.16 if i % 4 == 1 and j == i - 1 else 0.06)
            signs[i][j] = signs[j][i] = rng.uniform(0.3, 1)
    groups = components(tasks, jaccard, 0.1)
    order = list(range(len(groups)))
    rng.shuffle(order)
    stage(
        "03-group",
        {
            "groups.json": {
                "tasks": tasks,
                "jaccard": jaccard,
                "sign_agreement": signs,
                "groups": groups,
                "order": order,
                "threshold": 0.1,
            }
        },
    )
    for k in range(len(groups)):
        stage(f"04-backbone/{k + 1}", **trained(20 * len(groups[order[k]])))
    tensors = {}
    for name, size in sizes().items():
        angles = [rng.uniform(0.001, 0.003) for _ in tasks]
        apart = [[rng.uniform(0.9, 1.4) for _ in range(n + 1)] for _ in range(n + 1)]
        tensors[name] = {
            "coefficients": [0.0] + [1 / (n + 1)] * (n + 1),
            "angles": angles,
            "norms": [1.0] * (n + 2),
            "update_angles": apart,
            "free": size - size // 50,
            "core": size // 50,
            "won": {},
            "contested": 3,
        }
    fusion = {"options": {"overlap": "largest", "interpolation": "slerp", "space": "weights"}, "models": ["base", "backbone", *tasks], "total": sum(sizes().values()), "core": n * count - 40,
              "core_share": 0.029, "contested": 40, "won": {t: count - rng.randint(0, 40) for t in tasks}, "tensors": tensors}  # fmt: skip
    stage("05-fuse", {"fusion.json": fusion})
    for k in range(len(groups)):
        stage(f"06-refine/{k + 1}", settings={"tasks": groups[order[k]]}, **trained(8))
    skill = {t: rng.uniform(0.3, 0.9) for t in tasks}
    lost = {
        t for g in (groups[i] for i in order[: max(1, len(order) // 3)]) for t in g
    }  # trained early, forgotten later
    models = {"base": 0.05, **{f"probe/{t}": 0.15 for t in tasks}, "backbone": 0.6, "fused": 0.75}
    models |= {f"refine/{k + 1}": 0.75 + 0.2 * (k + 1) / len(groups) for k in range(len(groups))}
    for i, (model, level) in enumerate(models.items()):
        folder_name = model.replace("/", "-")
        for task in tasks:
            p = skill[task] * (
                1.0
                if model == f"probe/{task}"
                else level * (0.5 if task in lost and model not in ("base", "fused") else 1)
            )
            if (metrics or {}).get(task) == "loss":
                items = [2.5 - 1.5 * p + rng.gauss(0, 0.2) for _ in range(60)]
                metric = "loss"
            else:
                items, metric = [float(rng.random() < p) for _ in range(60)], "exact_match"
            score = {"metric": metric, "score": sum(items) / 60, "items": items, "tokens": [3] * 60}
            stage(f"07-evaluate/{folder_name}/{task}", {"score.json": score}, score=score["score"])
        losses = [3.1 + 0.02 * i + 0.1 * j for j in range(6)]
        guard: dict[str, Any] = {
            "scores": {
                "neutral text": {"metric": "loss", "score": sum(losses) / 6, "items": losses, "tokens": [70] * 6}
            }
        }
        if i:
            guard["drift"] = {
                "kl": 0.01 * i,
                "low": 0.009 * i,
                "high": 0.011 * i,
                "items": [0.01 * i] * 6,
                "tokens": [70] * 6,
            }
        stage(f"07-guard/{folder_name}", {"guard.json": guard})
    if going:
        log.append({"event": "run", "seconds": 1000.0})
    elif error:
        log.append({"event": "error", "stage": until, "error": error})
    if not going:
        half = folder / "stages" / until
        (half.parent / f".{half.name}.partial").mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    if change:
        change(folder)
    return folder


def made_comparison(folder: Path, *, seeds: int = 3, tasks: int = 3, running: bool = False, seed: int = 0) -> Path:
    """A comparison with three budgets, summarised as ``cpift compare`` does."""
    rng = random.Random(seed)
    names = [f"task{i}" for i in range(tasks)]
    level = {
        "cpi_ft": 0.62,
        "multi_task": 0.60,
        "multi_stage_random": 0.45,
        "single_task": 0.66,
        "base": 0.1,
        "cpi_ft:fuse.space=updates": 0.63,
        "ties": 0.5,
    }

    def result(p: float) -> dict[str, Any]:
        scores = {}
        for t in names:
            items = [float(rng.random() < p + 0.1 * (names.index(t) - 1)) for _ in range(60)]
            scores[t] = {"metric": "exact_match", "score": sum(items) / 60, "items": items, "tokens": [2] * 60}
        return {"tokens": 120000, "seconds": 340.0, "scores": scores}

    budgets: dict[str, dict[str, dict[str, Any]]] = {}
    for budget in ("equal_tokens", "paper"):
        budgets[budget] = {
            m: {str(s): result(p) for s in range(seeds)} for m, p in level.items() if not (running and m == "ties")
        }
    arriving = {}
    for m in ("sequential", "cpi_ft"):
        arriving[m] = {}
        for s in range(seeds):
            arrivals = [
                {"task": t, "tokens": 1000, "scores": {o: rng.uniform(0.2, 0.7) for o in names[: i + 1]}}
                for i, t in enumerate(names)
            ]
            arriving[m][str(s)] = {**result(0.4), "arrivals": arrivals}
    budgets["incremental"] = arriving

    def mean(values: list[float]) -> dict[str, Any]:
        m = sum(values) / len(values)
        sd = (sum((v - m) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
        return {"mean": m, "sd": sd}

    def average(r: dict[str, Any]) -> float:
        return sum(e["score"] for e in r["scores"].values()) / len(names)

    summary, differences = {}, {}
    for budget, methods in budgets.items():
        summary[budget] = {
            m: {
                "tokens": 120000.0,
                "seconds": 340.0,
                "seeds": len(rs),
                "mean": mean([average(r) for r in rs.values()]),
                "tasks": {t: mean([r["scores"][t]["score"] for r in rs.values()]) for t in names},
                "worst_task": names[0],
                "seesaw": 1,
            }
            for m, rs in methods.items()
        }
        differences[budget] = []
        for m in methods:
            if m != "cpi_ft":
                gap = summary[budget][m]["mean"]["mean"] - summary[budget]["cpi_ft"]["mean"]["mean"]
                each = {t: {"difference": gap, "low": gap - 0.06, "high": gap + 0.06} for t in names}
                differences[budget].append(
                    {
                        "method": m,
                        "against": "cpi_ft",
                        "seeds": seeds,
                        "mean": {"difference": gap, "low": gap - 0.04, "high": gap + 0.04},
                        "tasks": each,
                        "wins": 0,
                        "losses": 0,
                        "ties": tasks,
                    }
                )
    found = {"format": "cpift.comparison/1", "state": "running" if running else "done", "recipe": recipe(names).model_dump(by_alias=True, mode="json"), "tasks": {t: {"metric": "exact_match", "rows": 60} for t in names},
             "seeds": list(range(seeds)), "reference": "cpi_ft", "budgets": budgets, "summary": summary, "differences": differences}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(found))
    return folder
