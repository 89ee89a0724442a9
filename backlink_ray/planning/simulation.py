"""Simulation: a pipeline's schedule event by event, on devices that need not exist."""

from collections import defaultdict, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from backlink_ray.measure.timeline import Span
from backlink_ray.pipeline.exchange import CAPACITY
from backlink_ray.pipeline.schedule import Action, run_actions
from backlink_ray.planning.sharing import Processor

Process = Generator[simpy.Event, Any, None]
Receiver = tuple[int, str]  # a stage, and the kind of message
# Of what an action sends or receives: its kind, and whether it travels to the next stage (1) or to the previous one (-1).
_MESSAGES = {
    "activation": ("activation", 1), "output": ("activation", 1), "local_gradient": ("local_gradient", 1),
    "link_gradient": ("link_gradient", -1), "error": ("error", -1),
}  # fmt: skip


def _message(action: str) -> tuple[str, int]:
    return _MESSAGES[action.partition("_")[2]]


@dataclass(frozen=True, slots=True)
class MessageCost:
    """Seconds of a message: of any, and of each of its bytes."""

    base_s: float = 0.0
    s_per_byte: float = 0.0

    def of(self, num_bytes: int) -> float:
        """Return the seconds of a message of that size."""
        return self.base_s + num_bytes * self.s_per_byte


FREE = MessageCost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What messages cost; by default nothing, as between threads.

    Attributes:
        wire: from the end of a send to the arrival.
        send, receive: of the stage's own thread, which computes nothing meanwhile.
        helpers: of other threads on either side, which take part in the devices, meanwhile.
    """

    wire: MessageCost = FREE
    send: MessageCost = FREE
    receive: MessageCost = FREE
    helpers: MessageCost = FREE

    def hop_s(self, num_bytes: int) -> float:
        """Return the seconds from the beginning of a send to the end of the receipt."""
        return sum(cost.of(num_bytes) for cost in (self.send, self.wire, self.receive))


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage does in a step.

    Attributes:
        actions: in order, from `pipeline.schedule`; "average_.." if there are replicas.
        seconds: of each action that computes.
        sent_bytes: of each action that sends or averages.
    """

    actions: Sequence[Action]
    seconds: Mapping[str, float]
    sent_bytes: Mapping[str, int]

    @property
    def busy_s(self) -> float:
        """Return the seconds of computing in a step."""
        return sum(self.seconds.get(action.name, 0.0) for action in self.actions)

    def sent(self, direction: int) -> int:
        """Return the bytes that go to the next stage (1) or to the previous one (-1) in a step."""
        sends = (action.name for action in self.actions if action.name.startswith("send_"))
        return sum(self.sent_bytes[name] for name in sends if _message(name)[1] == direction)


class Mailbox:
    """Messages of one kind for a stage, from one sender, which takes room for each before it travels.

    Attributes:
        room: for more messages.
        messages: that have arrived, as their bytes.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self.room, self.messages = env, CAPACITY, deque[int]()
        self._sender: simpy.Event | None = None
        self._receiver: simpy.Event | None = None

    def freed(self) -> simpy.Event:
        """Return what the sender waits for while there is no room."""
        self._sender = self._env.event()
        return self._sender

    def filled(self) -> simpy.Event:
        """Return what the receiver waits for while there is no message."""
        self._receiver = self._env.event()
        return self._receiver

    def put(self, num_bytes: int) -> None:
        """Let a message arrive."""
        self.messages.append(num_bytes)
        if self._receiver:
            self._receiver.succeed()
            self._receiver = None

    def take(self) -> int:
        """Take the first message, which makes room for another."""
        self.room += 1
        if self._sender:
            self._sender.succeed()
            self._sender = None
        return self.messages.popleft()


class Simulation:
    """A run of steps of a pipeline, from the first input to the last update.

    Args:
        stages: what each stage does; of several replicas one after the other.
        transfer: what messages cost.
        num_steps: 4 or more.
        devices: of each stage the number of its device; () for one each.
        cores, speeds: of each device, see `speed_of`.
        replicas: D, of every stage; they average what they have computed.

    Attributes:
        spans: what every stage did when, in seconds from the start.
    """

    def __init__(
        self,
        stages: Sequence[StageWork],
        transfer: Transfer,
        num_steps: int,
        devices: Sequence[int] = (),
        cores: int = 1,
        speeds: Sequence[float] = (1.0,),
        replicas: int = 1,
    ) -> None:
        self._stages, self._transfer, self._num_steps = stages, transfer, num_steps
        self._num_modules = len(stages) // replicas
        self.spans: list[Span] = []
        self._env = simpy.Environment()
        self._devices = devices or range(len(stages))
        self._processors = {device: Processor(self._env, cores, speeds) for device in self._devices}
        # Nothing else computes on a stage's device: it needs no Processor.
        self._are_apart = len(self._processors) == len(stages) and transfer.helpers == FREE
        self._mailboxes: dict[Receiver, Mailbox] = defaultdict(lambda: Mailbox(self._env))
        for k in range(len(stages)):
            self._env.process(self._work(k))
        self._env.run()

    @property
    def run_s(self) -> float:
        """Return the seconds from the first input to the last update."""
        return max(span.end_s for span in self.spans)

    @property
    def step_s(self) -> float:
        """Return the seconds from step to step once the pipeline is full, and before it drains."""
        ends = [0.0] * self._num_steps
        for span in self.spans:
            ends[span.step] = max(ends[span.step], span.end_s)
        last = self._num_steps - 2
        if len(self._processors) < len(self._stages):  # those that have ended no longer take their part of a device
            first_end_s = min({span.stage_index: span.end_s for span in self.spans}.values())
            last = max(1, sum(end <= first_end_s for end in ends) - 1)
        full = (last + 1) // 2
        return (ends[last] - ends[full - 1]) / (last - full + 1)

    def _work(self, k: int) -> Process:
        work = self._stages[k]
        for name, step in run_actions(range(self._num_steps), work.actions):
            start, how = self._env.now, name.partition("_")[0]
            if how == "send":
                kind, direction = _message(name)
                yield from self._send(k, (k + direction, kind), work.sent_bytes[name])
            elif how == "receive":
                yield from self._receive(k, _message(name)[0])
            elif how == "average":
                yield from self._average(k, work.sent_bytes[name])
            else:
                yield self._compute(k, work.seconds[name])
            self.spans.append(Span(k, step, name, start, self._env.now))

    def _compute(self, k: int, seconds: float) -> simpy.Event:
        if self._are_apart:
            return self._env.timeout(seconds)
        return self._processors[self._devices[k]].compute(seconds)

    def _send(self, k: int, receiver: Receiver, num_bytes: int) -> Process:
        mailbox = self._mailboxes[receiver]
        if not mailbox.room:
            yield mailbox.freed()
        mailbox.room -= 1
        if seconds := self._transfer.send.of(num_bytes):
            yield self._compute(k, seconds)
        if self._transfer.wire == self._transfer.helpers == FREE:
            mailbox.put(num_bytes)
        else:
            self._env.process(self._travel(k, receiver, num_bytes))

    def _travel(self, k: int, receiver: Receiver, num_bytes: int) -> Process:
        seconds = self._transfer.helpers.of(num_bytes)
        helpers = [self._compute(end, seconds) for end in (k, receiver[0]) if seconds]
        yield self._env.all_of([self._env.timeout(self._transfer.wire.of(num_bytes)), *helpers])
        self._mailboxes[receiver].put(num_bytes)

    def _receive(self, k: int, kind: str) -> Process:
        mailbox = self._mailboxes[k, kind]
        if not mailbox.messages:
            yield mailbox.filled()
        num_bytes = mailbox.take()
        if seconds := self._transfer.receive.of(num_bytes):
            yield self._compute(k, seconds)

    def _average(self, k: int, num_bytes: int) -> Process:
        """Send what is averaged to every stage of the same module, and take theirs."""
        others = [j for j in range(k % self._num_modules, len(self._stages), self._num_modules) if j != k]
        for other in others:
            yield from self._send(k, (other, f"part of {k}"), num_bytes)
        for other in others:
            yield from self._receive(k, f"part of {other}")
