"""MethodState: what a module carries from one step to the next besides its weights, if errors arrive late."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backlink_ray.local.engine import Engine
from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Chain, StepSeed


@dataclass(slots=True)
class MethodState:
    """One module's memory between steps; empty for methods whose errors arrive within the step.

    Attributes:
        link: the next module's gradients for the tail, from the previous step (BackLink in mode stale).
        error: the next module's error, from the previous step (DDG); empty before the first.
        stash: forwards that wait for their error, oldest first, each with a copy of its weights (DDG).
    """

    link: list[Tensor] = field(default_factory=list)
    error: Tensor = field(default_factory=lambda: torch.empty(0))
    stash: deque[Graph] = field(default_factory=deque)

    def tensors(self, module_index: int) -> Iterator[tuple[str, Tensor]]:
        """Yield everything by name, for a checkpoint: "modules.<index>.link.0", "...error", "...stash.0.<name>"."""
        prefix = f"modules.{module_index}"
        yield from ((f"{prefix}.link.{i}", tensor) for i, tensor in enumerate(self.link))
        if self.error.numel():
            yield f"{prefix}.error", self.error
        for i, graph in enumerate(self.stash):
            yield from ((f"{prefix}.stash.{i}.{name}", tensor) for name, tensor in graph.tensors())

    def load(self, module_index: int, found: Mapping[str, Tensor], chain: Chain, seed: int, engine: Engine) -> None:
        """Load everything; the forwards in the stash are computed again, each with its own weights."""
        prefix, device = f"modules.{module_index}.", next(chain.parameters(), torch.empty(0)).device
        own = {name.removeprefix(prefix): t.to(device) for name, t in found.items() if name.startswith(prefix)}
        self.link = [own[f"link.{i}"] for i in range(sum(name.startswith("link.") for name in own))]
        self.error = own.get("error", torch.empty(0, device=device))
        self.stash = deque()
        while parts := {n: t for n, t in own.items() if n.startswith(f"stash.{len(self.stash)}.")}:
            entry = {name.split(".", 2)[2]: tensor for name, tensor in parts.items()}
            step = int(entry.pop("step"))
            with engine.running(device):
                self.stash.append(Graph.restored(chain, entry, StepSeed(seed, step, engine)))
