"""Reach: whether the head and the machines of a Ray cluster answer, which Ray itself says only after up to a minute."""

import socket
import time

import ray

from backlink_ray.errors import ClusterError

# A living process accepts a connection at once.
_CONNECT_TIMEOUT_S = 1.0
# How often the head is asked, and how long it may be silent: one that is kept alive elsewhere can come back in that time, and
# Ray itself ends this process after 60 s.
_CHECK_EVERY_S = 2.0
HEAD_TIMEOUT_S = 20.0
# How long Ray may take to notice that a machine is gone; until then it would start new processes there.
MACHINE_TIMEOUT_S = 60.0


class Reach:
    """The addresses of a cluster's head and machines, as they are when this is made.

    Attributes:
        is_lost: this process cannot use the cluster any more.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._head, self._own = context.gcs_address, context.get_node_id()
        self._machines = {n["NodeID"]: f"{n['NodeManagerAddress']}:{n['NodeManagerPort']}" for n in ray.nodes()}
        self.is_lost = False
        self._heard = self._checked = time.monotonic()

    def check(self) -> bool:
        """Return whether the head answered when it was last asked.

        Raises:
            ClusterError: it has not answered for HEAD_TIMEOUT_S.
        """
        now = time.monotonic()
        if now - self._checked >= _CHECK_EVERY_S:
            self._checked, self._heard = now, now if _answers(self._head) else self._heard
            silent_s = now - self._heard
            if silent_s > HEAD_TIMEOUT_S:
                raise self._lost(
                    f"the head process of the Ray cluster, at {self._head}, has not answered for {silent_s:.0f} s"
                )
        return self._heard >= self._checked

    def check_own(self) -> None:
        """Raise ClusterError if the Ray process of this machine, without which nothing can be started, does not answer."""
        if self.is_gone(self._own):
            raise self._lost(f"the Ray process of this machine, at {self._machines[self._own]}, is gone")

    def _lost(self, reason: str) -> ClusterError:
        self.is_lost = True
        return ClusterError(reason, final=True)

    def is_gone(self, machine: str) -> bool:
        """Return whether the Ray process of a machine does not answer."""
        return machine in self._machines and not _answers(self._machines[machine])

    def wait_until_known(self, machine: str) -> None:
        """Wait until Ray knows that a machine is gone, or until it answers again; at most MACHINE_TIMEOUT_S."""
        deadline = time.monotonic() + MACHINE_TIMEOUT_S
        while time.monotonic() < deadline and self.is_gone(machine):
            if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == machine):
                return
            time.sleep(0.5)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
