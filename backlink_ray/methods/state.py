"""MethodState: what a module takes from one step into the next besides its weights, where errors come late."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Chain, StepSeed


@dataclass(slots=True)
class MethodState:
    """One module's memory between steps; empty for methods whose errors come in the same step.

    Attributes:
        link: the next module's gradients for the tail, of the step before (BackLink in mode stale).
        error: the next module's error, of the step before (DDG); an empty tensor says that it had none yet.
        stash: forwards that wait for their error, oldest first, each with the weights it was made with (DDG).
    """

    link: list[Tensor] = field(default_factory=list)
    error: Tensor = field(default_factory=lambda: torch.empty(0))
    stash: deque[Graph] = field(default_factory=deque)

    def tensors(self, module_index: int) -> Iterator[tuple[str, Tensor]]:
        """Yield everything by name, for a checkpoint: "carry.<module index>.link.0", "...error", "...stash.0.<name>"."""
        place = f"carry.{module_index}"
        yield from ((f"{place}.link.{i}", tensor) for i, tensor in enumerate(self.link))
        if self.error.numel():
            yield f"{place}.error", self.error
        for i, graph in enumerate(self.stash):
            yield from ((f"{place}.stash.{i}.{name}", tensor) for name, tensor in graph.tensors())

    def load(self, module_index: int, found: Mapping[str, Tensor], chain: Chain, seed: int) -> None:
        """Take everything back; what waits in the stash is forwarded again, with the weights it was made with."""
        place, device = f"carry.{module_index}", next(chain.parameters(), torch.empty(0)).device
        own = {
            name.removeprefix(f"{place}."): t.to(device) for name, t in found.items() if name.startswith(f"{place}.")
        }
        self.link = [own[f"link.{i}"] for i in range(sum(name.startswith("link.") for name in own))]
        self.error = own.get("error", torch.empty(0, device=device))
        self.stash = deque()
        while parts := {n: t for n, t in own.items() if n.startswith(f"stash.{len(self.stash)}.")}:
            entry = {name.split(".", 2)[2]: tensor for name, tensor in parts.items()}
            step = int(entry.pop("step"))
            self.stash.append(Graph.restored(chain, entry, StepSeed(seed, step)))
