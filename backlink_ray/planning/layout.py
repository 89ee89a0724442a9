"""Layout: a network cut into stages, and what each stage computes, sends and holds in a step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from backlink_ray.pipeline.exchange import CAPACITY
from backlink_ray.pipeline.schedule import Action, step_actions
from backlink_ray.planning.costs import Array, NetworkCosts
from backlink_ray.planning.simulation import StageWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How the error of the next module reaches a module.

    Attributes:
        length: l, units that it goes back through.
        kind: replica or error.
        recompute: the graph of these units is not kept, but made again.
    """

    length: int
    kind: str = "replica"
    recompute: bool = False

    @property
    def replica_length(self) -> int:
        """Return how many units of the module before a stage computes, too."""
        return self.length if self.kind == "replica" else 0


class Stages:
    """Any stage of a network, as its units start..stop - 1; both may be arrays, for all stages that a network can be cut into.

    Args:
        costs: of the network.
        link: between any two modules.
        replicas: D, of every stage; the costs are those of a part of the batch.
    """

    def __init__(self, costs: NetworkCosts, link: Link, replicas: int = 1) -> None:
        self._costs, self._link, self._count, self._replicas = costs, link, costs.count, replicas
        self._sums = {
            name: np.concatenate([[0.0], np.cumsum(getattr(costs, name))])
            for name in ("forward_s", "backward_s", "weight_bytes", "buffer_bytes", "saved_bytes", "shared_bytes")
        }

    def _sum(self, name: str, start: Any, stop: Any) -> Any:
        return self._sums[name][stop] - self._sums[name][start]

    def _parts(self, start: Any, stop: Any) -> tuple[Any, Any]:
        """Return where the tail begins, and where the replica does."""
        tail = np.maximum(np.where(stop == self._count, stop, stop - self._link.length), start)
        return tail, np.maximum(start - self._link.replica_length, 0)

    def seconds(self, start: Any, stop: Any) -> dict[str, Any]:
        """Return the seconds of every action that computes."""
        costs, again = self._costs, float(self._link.recompute)
        of_input = np.append(
            costs.input_error_s, 0.0
        )  # a chain's first unit has it only where somebody wants the error
        no_error = np.where(start > 0, of_input[start], 0.0) * (self._link.length == 0)
        tail, replica = self._parts(start, stop)
        forward, backward = "forward_s", "backward_s"
        own = self._sum("weight_bytes", start, tail) + costs.head_weight_bytes[stop - 1]
        updated = {
            "body": own,
            "tail": self._sum("weight_bytes", tail, stop),
            "replica": self._sum("weight_bytes", replica, start),
        }
        return {
            "replica_forward": self._sum(forward, replica, start),
            "body_forward": self._sum(forward, start, tail)
            + np.where(start == 0, self._replicas * costs.input_s, 0.0),  # of the whole batch
            "tail_forward": self._sum(forward, tail, stop),
            "local_backward": self._sum(backward, start, stop) + costs.head_s[stop - 1] - no_error,
            "link_backward": self._linked(tail, stop, again) - of_input[tail] * (tail < stop),
            "replica_backward": self._linked(replica, start, again) - of_input[replica] * (replica < start),
            **{f"{part}_update": costs.update_s_per_byte * weights for part, weights in updated.items()},
        }

    def _linked(self, start: Any, stop: Any, again: float) -> Any:
        return self._sum("backward_s", start, stop) + again * self._sum("forward_s", start, stop)

    def busy_s(self, start: Any, stop: Any) -> Any:
        """Return the seconds of computing in a step."""
        seconds = self.seconds(start, stop)
        if self._link.kind == "replica":
            seconds["link_backward"] = 0.0
        return sum(seconds.values())

    def memory_bytes(self, start: Any, stop: Any) -> Any:
        """Return the peak in a step: parameters with gradient and momentum, statistics, and what is saved for the backward.

        And what a run keeps besides: its data, of which the first stage alone has the inputs, and the messages that may wait.
        """
        costs = self._costs
        _, replica = self._parts(start, stop)
        weights = self._sum("weight_bytes", replica, stop) + costs.head_weight_bytes[stop - 1]
        buffers = self._sum("buffer_bytes", replica, stop) + costs.head_buffer_bytes[stop - 1]
        first = start if self._link.recompute else replica
        data = costs.label_bytes + np.where(start == 0, costs.data_bytes, 0)
        averaged = (
            (self._replicas > 1) * (self._replicas + 1) * self._averaged(start, stop)
        )  # each part, a copy, the mean
        waiting = CAPACITY * self._received(start, stop)
        return 3 * weights + buffers + self.saved_bytes(first, stop) + data + waiting + averaged

    def _averaged(self, start: Any, stop: Any) -> Any:
        """Return the bytes that replicas average after the local backward: gradients, statistics and the loss."""
        costs = self._costs
        head = costs.head_weight_bytes[stop - 1] + costs.head_buffer_bytes[stop - 1]
        return self._sum("weight_bytes", start, stop) + self._sum("buffer_bytes", start, stop) + head + 4

    def _received(self, start: Any, stop: Any) -> Any:
        """Return the bytes of one message of each kind that the stage gets."""
        output, link = self._costs.output_bytes, self._link
        tail, replica = self._parts(start, stop)
        activation = np.where(replica > 0, output[replica - 1], self._costs.input_bytes) * (start > 0)
        if link.length and link.kind == "error":
            return activation + output[stop - 1] * (stop < self._count)
        return activation + self._sum("weight_bytes", replica, start) + self._sum("weight_bytes", tail, stop)

    def saved_bytes(self, start: Any, stop: Any) -> Any:
        """Return what units start..stop - 1 and their head save."""
        shared = self._sum("shared_bytes", start, stop) - self._costs.shared_bytes[np.minimum(start, self._count - 1)]
        return self._sum("saved_bytes", start, stop) - shared + self._costs.head_saved_bytes[stop - 1]

    def memory_of(self, sizes: Sequence[int]) -> list[float]:
        """Return the peak of every stage in bytes."""
        stops = np.cumsum(sizes)
        return self.memory_bytes(stops - sizes, stops).tolist()  # type: ignore[no-any-return]

    def works(self, sizes: Sequence[int]) -> list[StageWork]:
        """Return what each stage does in a step."""
        return [self._work(*bounds) for bounds in _bounds(sizes)]

    def _work(self, start: int, stop: int) -> StageWork:
        costs, link = self._costs, self._link
        tail, replica = (int(place) for place in self._parts(start, stop))
        is_first, is_last = start == 0, stop == self._count
        actions = step_actions(is_first=is_first, is_last=is_last, link=link.kind if link.length else "")
        before = costs.input_bytes if is_first else costs.output_bytes[start - 1]
        sent = {
            "send_activation": costs.output_bytes[tail - 1] if tail > start else before,
            "send_output": costs.output_bytes[stop - 1],
            "send_error": before,
            "send_local_gradient": self._sum("weight_bytes", tail, stop),
            "send_link_gradient": self._sum("weight_bytes", replica, start),
            "average_local_backward": self._averaged(start, stop),
            "average_link_backward": self._sum("weight_bytes", tail, stop),
            "average_replica_backward": self._sum("weight_bytes", replica, start)
            + self._sum("buffer_bytes", replica, start),
        }
        if self._replicas > 1:
            actions = tuple(_with_averages(actions))
        return StageWork(
            actions, {n: float(s) for n, s in self.seconds(start, stop).items()}, {n: int(b) for n, b in sent.items()}
        )

    def costs_of_all(self, balance: str) -> Array:
        """Return the cost of every stage as (N + 1, N + 1) [start, stop]: busy seconds ("time") or bytes ("memory")."""
        places = np.arange(self._count + 1)
        start, stop = places[:, None], places[None, :]
        found = (self.busy_s if balance == "time" else self.memory_bytes)(start, np.maximum(stop, 1))
        return np.where((stop > start) & np.isfinite(self._costs.head_s[stop - 1]), found, np.inf)


def _with_averages(actions: Iterable[Action]) -> Iterator[Action]:
    """Have replicas average the gradients of every backward."""
    for action in actions:
        yield action
        if action.name.endswith("_backward"):
            yield Action(f"average_{action.name}", action.lag)


def _bounds(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True))
