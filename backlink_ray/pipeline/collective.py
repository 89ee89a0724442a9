"""CollectiveLink: messages between Ray actors through torch.distributed, point to point: gloo on CPUs, NCCL between GPUs."""

import socket
import threading
from contextlib import suppress
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]

from backlink_ray.errors import ConfigError, LinkAbortedError, LinkError, first_line
from backlink_ray.pipeline.exchange import CAPACITY, Kind, Link, Mailbox, record_event
from backlink_ray.pipeline.message import Layout, pack, unpack
from backlink_ray.pipeline.progress import wait_patiently

# Those who wait for a message have a limit; those who take messages in wait for as long as there is a neighbour.
FOREVER = timedelta(days=365)
# What precedes a tensor, always of one size: kind, step, type, number of dimensions, then its shape and two lists of strides.
DIMENSIONS = 16
_HEADER = 4 + 3 * DIMENSIONS
_KINDS, _BYE = list(Kind), -1
_TYPES = (
    torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


Address = tuple[str, int]


class Meeting:
    """Where two neighbouring stages meet: the earlier one listens at an address of its machine, to which the later one comes.

    Whoever can reach that address can join: torch.distributed knows no passwords.

    Args:
        host: the machine's address in the cluster; 127.0.0.1 in a private one.
    """

    def __init__(self, host: str) -> None:
        listening = socket.create_server((host, 0))
        self.address = (host, listening.getsockname()[1])
        self._store = TCPStore(*self.address, None, True, wait_for_workers=False, master_listen_fd=listening.detach())

    def link(
        self,
        inbox: Mailbox,
        neighbour: str,
        device: torch.device,
        stage_timeout_s: float,
        timeout_s: float,
        who: str = "following",
    ) -> "CollectiveLink":
        """Return the link to the stage that comes; see `join`."""
        how = PrefixStore(who, self._store), self.address[0], device, timeout_s
        outgoing, incoming = Channel("forward", True, *how), Channel("backward", False, *how)
        return CollectiveLink(outgoing, incoming, inbox, neighbour, stage_timeout_s)


def join(
    address: Address,
    host: str,
    inbox: Mailbox,
    neighbour: str,
    device: torch.device,
    stage_timeout_s: float,
    timeout_s: float,
    who: str = "following",
) -> "CollectiveLink":
    """Return the link to the stage that listens at an address.

    Args:
        address: of the neighbour's `Meeting`.
        host: this machine's address.
        inbox: where the neighbour's messages arrive.
        neighbour: its name in errors.
        device: of this stage.
        stage_timeout_s: longest wait for a message, or for the neighbour to take one.
        timeout_s: longest wait for the neighbour to come.
        who: which of those this one is that come to this address.
    """
    waiting = timedelta(seconds=timeout_s)
    store = PrefixStore(who, TCPStore(*address, None, False, waiting, wait_for_workers=False))
    how = store, host, device, timeout_s
    incoming, outgoing = Channel("forward", False, *how), Channel("backward", True, *how)
    return CollectiveLink(outgoing, incoming, inbox, neighbour, stage_timeout_s)


class Channel:
    """One direction between two neighbours: a group of two processes, of which the first sends.

    Args:
        name: of the direction.
        sends: whether this end does.
        store: of the meeting.
        host: this machine's address in the cluster.
        device: of the tensors.
        timeout_s: longest wait for the other end to come.
    """

    def __init__(self, name: str, sends: bool, store: Store, host: str, device: torch.device, timeout_s: float) -> None:
        self.device, self._peer = device, int(sends)
        store = PrefixStore(name, store)
        store.set_timeout(timedelta(seconds=timeout_s))
        self._group = _nccl(store, 1 - self._peer) if device.type == "cuda" else _gloo(store, 1 - self._peer, host)

    def send(self, tensor: Tensor) -> None:
        """Send a tensor, and wait until it is under way and may be changed; ConnectionError if the neighbour is gone."""
        _wait(self._group.send([tensor], self._peer, 0))

    def receive(self, tensor: Tensor) -> Tensor:
        """Fill a tensor of the size that is sent, and return it; ConnectionError if the neighbour is gone."""
        _wait(self._group.recv([tensor], self._peer, 0))
        return tensor


def _wait(work: Any) -> None:
    try:
        work.wait()
    except RuntimeError as error:  # torch's only one
        raise ConnectionError(first_line(error)[-120:]) from error


def _gloo(store: Store, rank: int, host: str) -> Any:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout, options._threads = FOREVER, 1
    return ProcessGroupGloo(store, rank, 2, options)


def _nccl(store: Store, rank: int) -> Any:
    """Return a group of two GPUs.

    Not run on a GPU yet, so `auto` does not take it.
    """
    from torch.distributed import ProcessGroupNCCL  # torch for CPUs has none

    options = ProcessGroupNCCL.Options()
    options._timeout = FOREVER
    return ProcessGroupNCCL(store, rank, 2, options)


class CollectiveLink(Link):
    """One stage's connection to a neighbouring actor.

    A thread has the next receive posted at any time, and puts what comes into the mailbox; another one sends, so that the
    stage does not wait for the network. What is sent is the tensor's own memory, and what is received, the memory that was
    filled: a message is copied by the network alone.

    Args:
        outgoing, incoming: channels to and from the neighbour.
        inbox: where the neighbour's messages arrive.
        neighbour: its name in errors.
        timeout_s: longest wait for a message, or for the neighbour to take one.
    """

    def __init__(self, outgoing: Channel, incoming: Channel, inbox: Mailbox, neighbour: str, timeout_s: float) -> None:
        self._inbox, self._neighbour, self._timeout_s = inbox, neighbour, timeout_s
        self._outbox: SimpleQueue[tuple[Tensor, Tensor, Any, Kind] | None] = SimpleQueue()
        # One more is in the hands of the neighbour's receiving thread.
        self._rooms = {kind: threading.Semaphore(CAPACITY - 1) for kind in Kind}
        # Only the threads know the channels: both ends are gone once both threads have ended.
        for work, channel in ((self._send_all, outgoing), (self._take_in, incoming)):
            threading.Thread(target=self._until_gone, args=(work, channel), daemon=True).start()

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        def is_free(seconds: float) -> bool:
            if self._inbox.aborted:
                raise LinkAbortedError(f"{kind} of step {step} was not taken: {self._inbox.aborted}")
            return self._rooms[kind].acquire(timeout=seconds)

        if not wait_patiently(is_free, self._timeout_s):
            raise LinkError(f"{kind} of step {step} was not taken within {self._timeout_s:g} s")
        data, layout = pack(tensor)
        self._outbox.put((_header(kind, step, layout), data, record_event(tensor), kind))

    def receive(self, kind: Kind, step: int) -> Tensor:
        tensor, ready = self._inbox.take(kind, step, self._timeout_s)
        return _wait_for(ready, tensor)

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        step, (tensor, ready) = self._inbox.take_any(kind, self._timeout_s)
        return step, _wait_for(ready, tensor).clone()  # the mailbox keeps the original

    def close(self) -> None:
        """Say goodbye to the neighbour, which ends this end's sending thread and the other's receiving one."""
        self._outbox.put(None)

    def _until_gone(self, work: Any, channel: Channel) -> None:
        stream = torch.cuda.Stream(channel.device) if channel.device.type == "cuda" else None
        try:
            with torch.cuda.stream(stream):  # what the stage computes does not wait for a message that is still to come
                work(channel)
        except LinkAbortedError:  # nobody waits for messages any more
            pass
        except ConnectionError as error:
            self._inbox.abort(f"{self._neighbour} is gone ({error})")
        except Exception as error:  # such as too little memory: who waits for the message says so
            self._inbox.abort(f"{type(error).__name__}: {first_line(error)}")

    def _send_all(self, channel: Channel) -> None:
        while message := self._outbox.get():
            header, data, ready, kind = message
            _wait_for(ready, data)
            channel.send(header.to(channel.device))
            if data.numel():
                channel.send(data)
            self._rooms[kind].release()
        with suppress(ConnectionError):  # the neighbour is gone already
            channel.send(torch.full((_HEADER,), _BYE, device=channel.device))

    def _take_in(self, channel: Channel) -> None:
        while True:
            numbers = channel.receive(torch.empty(_HEADER, dtype=torch.int64, device=channel.device)).tolist()
            if numbers[0] == _BYE:
                return
            kind, step, layout = _read(numbers)
            data = torch.empty(layout.num_bytes, dtype=torch.uint8, device=channel.device)
            if layout.num_bytes:
                channel.receive(data)
            tensor = unpack(data, layout)
            self._inbox.deliver(kind, step, (tensor, record_event(tensor)), FOREVER.total_seconds())


def _wait_for(ready: "torch.cuda.Event | None", tensor: Tensor) -> Tensor:
    """Return a tensor that another stream has made, for use in this thread's."""
    if ready is not None:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(ready)
        tensor.record_stream(stream)
    return tensor


def _header(kind: Kind, step: int, layout: Layout) -> Tensor:
    dtype, *lists = layout
    if dtype not in _TYPES or len(layout.shape) > DIMENSIONS:
        raise ConfigError(
            f"{kind} is {dtype} of shape {tuple(layout.shape)}; transport='collective' carries up to {DIMENSIONS} dimensions of "
            "numbers of torch's usual types; use objectstore"
        )
    padded = [number for each in lists for number in (*each, *[0] * (DIMENSIONS - len(each)))]
    return torch.tensor([_KINDS.index(kind), step, _TYPES.index(dtype), len(layout.shape), *padded])


def _read(numbers: list[int]) -> tuple[Kind, int, Layout]:
    kind, step, dtype, dimensions, *rest = numbers
    shape, order, strides = (tuple(rest[i * DIMENSIONS :][:dimensions]) for i in range(3))
    return _KINDS[kind], step, Layout(_TYPES[dtype], torch.Size(shape), order, strides)
