"""Links: what a message between two Ray actors costs on a cluster, measured by sending some to and fro."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from backlink_ray.allocator import prepare_process
from backlink_ray.errors import ClusterError, ConfigError
from backlink_ray.pipeline.collective import Address, Meeting, join
from backlink_ray.pipeline.exchange import Kind, Link, Mailbox, NoLink
from backlink_ray.pipeline.objectstore import ObjectStoreLink
from backlink_ray.planning.simulation import MessageCost, Transfer

# Such as the gradients of a small tail, and an activation of a ResNet at batch 128: between them, costs are a straight line.
SMALL, LARGE = 2**10, 2**22
ROUNDS, WARM_UP = 30, 5
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Trip:
    """What a message costs, as one end of a link finds it: seconds from one stage's thread to the other's, and of processors.

    Attributes:
        whole_s: from the beginning of the send to the end of the receipt.
        send_s, receive_s: of the thread that does it.
        helpers_s: of all other threads of one end.
    """

    whole_s: float
    send_s: float
    receive_s: float
    helpers_s: float


class LinkEnd:
    """One end of a link, in an actor: a stage that computes nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        prepare_process()
        torch.set_num_threads(1)
        self._inbox = Mailbox()
        self._link: Link = NoLink()

    def node(self) -> str:
        """Return the machine."""
        return ray.get_runtime_context().get_node_id()

    def deliver(self, _attempt: int, kind: str, step: int, payload: Any) -> None:
        """Take a message."""
        self._inbox.deliver(Kind(kind), step, payload, TIMEOUT_S)

    def connect(self, other: Any) -> None:
        """Link this end to the other through the object store."""
        self._link = ObjectStoreLink(other.deliver.remote, 0, self._inbox, self._device, TIMEOUT_S)

    def listen(self) -> Address:
        """Return where the other end can join this one."""
        self._meeting = Meeting(ray.util.get_node_ip_address())
        return self._meeting.address

    def join(self, address: Address | None) -> None:
        """Link this end to the other through torch.distributed: at its address, or here if it comes."""
        how = self._device, TIMEOUT_S, TIMEOUT_S
        if address:
            self._link = join(address, ray.util.get_node_ip_address(), self._inbox, "the first end", *how)
        else:
            self._link = self._meeting.link(self._inbox, "the second end", *how)

    def play(self, num_bytes: int, begins: bool) -> Trip:
        """Send a message to and fro; the first rounds do not count."""
        ball, trips = torch.zeros(num_bytes, dtype=torch.uint8, device=self._device), []
        for step in range(WARM_UP + ROUNDS):
            start, process_s, thread_s = time.perf_counter(), time.process_time(), time.thread_time()
            if begins:
                self._link.send(Kind.ACTIVATION, step, ball)
                sent_s = time.thread_time()
                self._link.receive(Kind.ACTIVATION, step)
                send_s, receive_s = sent_s - thread_s, time.thread_time() - sent_s
            else:
                self._link.receive(Kind.ACTIVATION, step)
                received_s = time.thread_time()
                self._link.send(Kind.ACTIVATION, step, ball)
                send_s, receive_s = time.thread_time() - received_s, received_s - thread_s
            whole_s, others_s = time.perf_counter() - start, time.process_time() - process_s - send_s - receive_s
            trips.append((whole_s / 2, send_s, receive_s, max(0.0, others_s) / 2))
        # Of the rounds of a busy machine the slower ones show what else it does.
        return Trip(*(statistics.quantiles(each, n=4)[0] for each in zip(*trips[WARM_UP:], strict=True)))


def measure_transfer(transport: str, device: str = "cpu") -> tuple[Transfer, int]:
    """Return what a message costs between two actors, on different machines if the cluster has several, and on how many.

    Args:
        transport: "objectstore" or "collective".
        device: of the stages: "cpu" or "cuda"; with GPUs not run yet.

    Raises:
        ConfigError: collective, and no two GPUs.
        ClusterError: the actors have not started, or not answered, in time.
    """
    gpus = ray.cluster_resources().get("GPU", 0.0) if device == "cuda" else 0.0
    if device == "cuda" and transport == "collective" and gpus < 2:
        raise ConfigError(
            f"transport='collective' is NCCL between GPUs, and the cluster has {gpus:g}; allowed: objectstore, or queue"
        )
    ends = [_actor_class(min(1.0, gpus / 2)).remote(torch.device(device)) for _ in range(2)]
    try:
        nodes = _wait([end.node.remote() for end in ends])
        if transport == "collective":
            address = _wait([ends[0].listen.remote()])[0]
            _wait([ends[0].join.remote(None), ends[1].join.remote(address)])
        else:
            _wait([end.connect.remote(other) for end, other in zip(ends, ends[::-1], strict=True)])
        small, large = (_wait([end.play.remote(size, k == 0) for k, end in enumerate(ends)]) for size in (SMALL, LARGE))
    finally:
        for end in ends:
            ray.kill(end)
    return transfer_of(small, large, on_gpu=device == "cuda"), len({*nodes})


def _actor_class(gpus: float) -> Any:
    """Decorate LinkEnd: a thread for the stage's part, and one that takes its messages, as a stage's actor has."""
    options: dict[str, Any] = {"num_cpus": 0.01, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    options["concurrency_groups"] = {"messages": 1}
    deliver = ray.method(concurrency_group="messages")(LinkEnd.deliver)
    return ray.remote(**options)(type("LinkEnd", (LinkEnd,), {"deliver": deliver}))


def _wait(refs: list[Any]) -> list[Any]:
    try:
        return list(ray.get(refs, timeout=2 * TIMEOUT_S))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the link could not be measured: {str(error).strip().splitlines()[-1]}") from error


def transfer_of(small: list[Trip], large: list[Trip], *, on_gpu: bool = False) -> Transfer:
    """Return the straight lines through what both ends found for messages of SMALL and LARGE bytes.

    Args:
        small, large: of either end.
        on_gpu: stages compute on GPUs, where threads that help take nothing from them.
    """
    mean = {
        name: [statistics.mean(getattr(trip, name) for trip in trips) for trips in (small, large)]
        for name in ("whole_s", "send_s", "receive_s", "helpers_s")
    }
    wire = [whole - send - receive for whole, send, receive in zip(*list(mean.values())[:3], strict=True)]
    helpers = [0.0, 0.0] if on_gpu else mean["helpers_s"]
    return Transfer(
        wire=_line(*wire), send=_line(*mean["send_s"]), receive=_line(*mean["receive_s"]), helpers=_line(*helpers)
    )


def _line(small_s: float, large_s: float) -> MessageCost:
    s_per_byte = max(0.0, large_s - small_s) / (LARGE - SMALL)
    return MessageCost(max(0.0, small_s - SMALL * s_per_byte), s_per_byte)
