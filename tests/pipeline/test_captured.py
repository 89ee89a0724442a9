"""Stages that replay what they recorded, from tapes or, on a GPU, as graphs of it: they have the bits of eager stages."""

from itertools import product
from typing import Any

import pytest
import torch

import backlink_ray as bl
from backlink_ray.local.engine import Engine
from backlink_ray.methods.base import Method
from backlink_ray.pipeline import capturedstage, threads
from backlink_ray.pipeline.schedule import step_actions, stretches
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.captured import WARM_UP
from backlink_ray.train.executor import Executor, Job
from tests.examples import job
from tests.pipeline.test_transparency import check_same, outcome
from tests.tape import TapeRecorder, sgd

# Both longer than the warm-up: the end of the first, and the beginning of the second, leave the order of the recording.
CHUNKS = (WARM_UP + 3, WARM_UP + 2)
LINKS = [
    bl.BackLink(propagation_length=length, link=link, tail_memory=memory)
    for link, memory, length in product(("replica", "error"), ("retain", "recompute"), (1, 2))
]
ON_INFOPRO = bl.BackLink(
    propagation_length=2, alpha_mode="compound", body_scale="alpha", base=bl.InfoPro(), link="error"
)
METHODS = [*LINKS, bl.BP(), bl.GLL(), bl.PredSim(), ON_INFOPRO]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def small_job(method: Method, head: str = "fc", **options: Any) -> Job:
    """Return a job of four modules of two units, so that with l = 2 the input is a tail's; its last test batch is smaller."""
    return job(method, 4, head, batch_size=3, **options)


class Taped:
    """Makes executors of stages that record on tapes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorders: list[TapeRecorder] = []
        self._patch = monkeypatch

    def __call__(self, training: Job) -> Executor:
        with self._patch.context() as patch:
            patch.setattr(threads, "make_stage", capturedstage.CapturedStage)
            patch.setattr(capturedstage, "Recorder", self._recorder)
            return ThreadsExecutor(training)

    def _recorder(self, _device: torch.device) -> TapeRecorder:
        self.recorders.append(TapeRecorder())
        return self.recorders[-1]


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> Taped:
    return Taped(monkeypatch)


def test_a_stretch_is_what_is_computed_for_one_step_between_two_links() -> None:
    """As in the pictures of the schedule, with u for updates."""

    def drawn(link: str, *, first: bool = False, last: bool = False) -> str:
        found = stretches(step_actions(is_first=first, is_last=last, link=link))
        return " ".join("".join(letter(name) for name in stretch) for stretch in found)

    def letter(name: str) -> str:
        what, how = name.split("_")
        return {"forward": what[0], "update": "u", "backward": "E" if what == "link" else what[0].upper()}[how]

    assert drawn("", first=True, last=True) == "btLu"
    assert drawn("", first=True) == "b tLu"
    assert drawn("replica", first=True) == "b u tL u"
    assert drawn("replica") == "rb u tL uR u"
    assert drawn("replica", last=True) == "rbtLuR u"
    assert drawn("error", first=True) == "b Eu t Lu"
    assert drawn("error") == "b Eu t L u"
    assert drawn("error", last=True) == "btL u"


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, id=repr(m), marks=() if m in (LINKS[0], ON_INFOPRO) else pytest.mark.slow) for m in METHODS],
)
def test_replays_have_the_bits_of_eager_stages(method: Method, taped: Taped) -> None:
    found = outcome(taped, small_job(method, optimizer=sgd), CHUNKS)
    check_same(found, outcome(ThreadsExecutor, small_job(method, optimizer=sgd), CHUNKS))
    assert len(taped.recorders) == (1 if isinstance(method, bl.BP) else 4)
    assert all(recorder.recorded for recorder in taped.recorders)


def test_a_state_that_is_loaded_is_recorded_anew(taped: Taped) -> None:
    with taped(small_job(LINKS[0], optimizer=sgd)) as executor:
        executor.train(WARM_UP + 2)
        middle, recorded = executor.state(), [recorder.recorded for recorder in taped.recorders]
        executor.train(1)
        executor.load(middle)
        executor.train(WARM_UP + 1)
        again = executor.state()
    assert recorded == [4, 5, 5, 2]  # as drawn above
    assert [recorder.recorded for recorder in taped.recorders] == [2 * n for n in recorded]
    with ThreadsExecutor(small_job(LINKS[0], optimizer=sgd)) as eager:
        eager.train(2 * WARM_UP + 3)
        assert all(torch.equal(t, again.weights[n]) for n, t in eager.state().weights.items())


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_graphs_have_the_bits_of_eager_stages(method: Method, precision: str, same_bits: None) -> None:
    eager, graph = (
        outcome(
            ThreadsExecutor, small_job(method, engine=Engine(precision=precision, graph=g), devices=("cuda",)), CHUNKS
        )
        for g in (False, True)
    )
    check_same(graph, eager)


@GPU
def test_heads_draw_anew_at_every_replay_and_the_same_in_every_run(same_bits: None) -> None:
    def losses() -> torch.Tensor:
        training = small_job(LINKS[0], "conv", engine=Engine(graph=True), devices=("cuda",))
        return outcome(ThreadsExecutor, training, CHUNKS)[3]

    assert torch.equal(losses(), losses())
