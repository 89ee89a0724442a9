"""Recorder: makes CUDA graphs of parts of a step, so that no other graph, thread or run of the process spoils them."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from backlink_ray.errors import ConfigError, first_line
from backlink_ray.seeds import host_states, turn

T = TypeVar("T")


class Recorder:
    """Calls parts of a step on a stream of its own, eagerly or to record them as a CUDA graph.

    One part at a time in a process: a recording fails if another begins, which waits for the whole GPU, and other threads' seeds
    would look like draws on the processor. Work that other threads launch meanwhile does not disturb it.

    Args:
        device: a GPU, and the current one at every call.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def call(self, part: Callable[[], T]) -> T:
        """Return part(), computed eagerly; ConfigError if it draws random numbers on the processor."""
        here = torch.cuda.current_stream()
        with turn():
            before = host_states()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                found = part()
            here.wait_stream(self._stream)
            if host_states() != before:
                raise ConfigError(
                    "a unit draws random numbers on the processor, and a captured step would repeat the first ones for ever; "
                    "draw on the GPU, or use graph=False"
                )
        return found

    def record(self, part: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Return what replays part() on the current stream, and what part() returned, which is computed by the first replay.

        Raises:
            ConfigError: it cannot be captured: it waits for the GPU, for example.
        """
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        # A capture that fails leaves its stream behind as the current one.
        as_before = torch.cuda.stream(torch.cuda.current_stream())
        try:
            with turn(), _undisturbed(), as_before, capture:
                found = part()
        except RuntimeError as error:
            raise ConfigError(
                f"the step cannot be captured as a CUDA graph ({_first_reason(error)}); use graph=False"
            ) from error
        return graph.replay, found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Record inside `with` what depends on no other graph.

    A graph that Python's garbage collection destroys meanwhile would end the recording. And torch keeps cuBLAS's workspaces by
    stream and frees them with any graph of that stream: one that is made during the recording is the graph's own.
    """
    collects = gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collects:
            gc.enable()


def _first_reason(error: BaseException) -> str:
    """Return the first line of the error that came first: to end a capture that has failed fails again."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error)
