"""Ways to spend one number of steps on several tasks: all at once, in stages, or as the method has it; E3 and E4.

Each form spends a share of the steps on probes, a share on a backbone and the rest on refining, so that all have the
same number of batches. A new form is a line of ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cpift.method.group import components
from lab import masks
from lab.merges import at_overlaps, interpolated
from lab.network import Network
from lab.rows import Rows, joined
from lab.training import Mixture, train

Groups = list[list[int]]


@dataclass(frozen=True)
class Form:
    """How the steps are spent.

    Attributes:
        label: how tables name it.
        probes: share of the steps for one specialist of each task.
        backbone: share for a multi-stage backbone; 0: it is the pre-trained model.
        merge: what refining starts from. ``none``: the backbone; ``stitch``: with the cores of the probes; ``soup``: the
            mean of the probes; ``equal``: cores, and the rest by SLERP in equal shares (the paper's).
        stages: refine group after group, else all tasks mixed.
        frozen: whether the cores of earlier groups are frozen in later stages.
    """

    label: str
    probes: float = 0.0
    backbone: float = 0.0
    merge: str = "none"
    stages: bool = False
    frozen: bool = False


FORMS: Mapping[str, Form] = {
    "multi": Form("multi-task SFT"),
    "stages": Form("multi-stage SFT", stages=True),
    "half": Form("multi-task SFT, half the steps", probes=0.5),
    "soup_mixed": Form("probes averaged, refined mixed", 0.5, merge="soup"),
    "stitch_mixed": Form("cores stitched, refined mixed", 0.5, merge="stitch"),
    "stitch_stages": Form("cores stitched, refined in stages", 0.5, merge="stitch", stages=True),
    "stitch_frozen": Form(
        "cores stitched, refined in stages, cores frozen", 0.5, merge="stitch", stages=True, frozen=True
    ),
    "paper": Form(
        "the paper's: backbone, cores, SLERP, stages, cores frozen", 1 / 3, 1 / 3, "equal", stages=True, frozen=True
    ),
    "paper_free": Form("the paper's, nothing frozen", 1 / 3, 1 / 3, "equal", stages=True),
}


@dataclass
class Trial:
    """The tasks of a unit, and what the forms share.

    Attributes:
        network: the model's shape.
        base: the pre-trained parameters.
        rows: training rows of each task.
        steps: of each task.
        probe_rate: learning rate of the probes.
        percent: p of the cores.
        seed: of batches and of the order of stages.
    """

    network: Network
    base: torch.Tensor
    rows: Sequence[Rows]
    steps: int
    probe_rate: float
    percent: float
    seed: int
    known: dict[float, tuple[torch.Tensor, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of a form."""
        return self.steps * len(self.rows)

    def probes(self, share: float) -> tuple[torch.Tensor, int]:
        """Updates of the specialists after a share of their steps, (N, D), and the characters trained on."""
        if share not in self.known:
            steps = max(1, round(share * self.steps))
            found = [
                train(self.network, self.base, Mixture(rows).batch, steps=steps, rate=self.probe_rate, seed=self.seed + i)
                for i, rows in enumerate(self.rows)
            ]  # fmt: skip
            self.known[share] = torch.stack([flat - self.base for flat, _ in found]), sum(seen for _, seen in found)
        return self.known[share]

    def cores(self, updates: torch.Tensor) -> torch.Tensor:
        """Core regions, bool (N, D)."""
        return torch.stack([masks.top(u.abs(), self.percent) for u in updates])

    def in_stages(
        self, start: torch.Tensor, groups: Groups, steps: int, rate: float, cores: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, int]:
        """Group after group, each as many steps as it has tasks.

        Args:
            start: parameters to start from.
            groups: tasks of each stage.
            steps: of all stages together.
            rate: learning rate of each stage.
            cores: to be frozen in the stages after their own; None: nothing is.
        """
        flat, seen, before = start, 0, list[int]()
        for k, group in enumerate(groups):
            draw = Mixture(joined([self.rows[i] for i in group])).batch
            share = max(1, round(steps * len(group) / len(self.rows)))
            frozen = cores[before].any(0) if cores is not None and before else None
            flat, tokens = train(
                self.network, flat, draw, steps=share, rate=rate, seed=self.seed + 100 + k, frozen=frozen
            )
            seen, before = seen + tokens, before + group
        return flat, seen

    def run(self, form: Form, rate: float, groups: Groups) -> tuple[torch.Tensor, int]:
        """The model of a form, and the characters trained on; ``half`` has no probes, and so spends less."""
        rest = self.total - round((form.probes + form.backbone) * self.total)
        flat, seen = self.base, 0
        if form.backbone:
            flat, seen = self.in_stages(flat, groups, round(form.backbone * self.total), rate)
        cores = None
        if form.merge != "none":
            updates, tokens = self.probes(form.probes)
            seen += tokens
            cores = self.cores(updates)
            flat = self.merged(form.merge, flat, updates, cores)
        if form.stages:
            flat, tokens = self.in_stages(flat, groups, rest, rate, cores if form.frozen else None)
        else:
            flat, tokens = self.in_stages(flat, [list(range(len(self.rows)))], rest, rate)
        return flat, seen + tokens

    def merged(self, how: str, backbone: torch.Tensor, updates: torch.Tensor, cores: torch.Tensor) -> torch.Tensor:
        """What refining starts from."""
        if how == "soup":
            return self.base + updates.mean(0)
        core_values = self.base + at_overlaps(updates, cores, "largest")
        free = ~cores.any(0)
        if how == "stitch":
            return torch.where(free, backbone, core_values)
        equal = [1 / (i + 2) for i in range(len(updates))]
        rest = interpolated(backbone, self.base + updates, free, self.network.sizes, equal)
        return torch.where(free, rest, core_values)


def overlaps(cores: torch.Tensor) -> torch.Tensor:
    """Jaccard index of each pair, float32 (N, N)."""
    sizes, both = cores.float().sum(1), cores.float() @ cores.float().T
    return both / (sizes[:, None] + sizes[None] - both)


def groups_of(overlap: torch.Tensor, threshold: float) -> Groups:
    """The groups that the package makes of these overlaps at a threshold (τ)."""
    names = [str(i) for i in range(len(overlap))]
    return [[int(name) for name in part] for part in components(names, overlap.tolist(), threshold)]


def shuffled(groups: Groups, seed: int) -> Groups:
    """The order of the stages, drawn by seed."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    return [groups[i] for i in order]


def as_large(groups: Groups, seed: int) -> Groups:
    """As many groups of the same sizes, of tasks drawn by seed."""
    order = torch.randperm(sum(map(len, groups)), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[order.pop() for _ in group] for group in groups]
