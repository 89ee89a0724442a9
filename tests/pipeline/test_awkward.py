"""Awkward modules over Ray: what tests/nets/test_awkward_modules.py shows for threads, in processes of their own."""

from collections.abc import Callable

import pytest
import torch

import backlink_ray as bl
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.nets.awkward import AS_TORCH, NO_COPY, RANDOM
from tests.nets.test_awkward_modules import compiled_norm, job_of, network, outcome, plain

MAKES = {**AS_TORCH, **RANDOM, "compiled": compiled_norm}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "names",
    [
        ("batch norm in eval()", "frozen"),
        ("bfloat16", "bfloat16"),
        ("Python's random", "numpy's generator"),
        ("train() overridden", "complex inside"),
        ("compiled", "backbone under no_grad"),
    ],
    ids="-".join,
)
def test_ray_equals_one_process(names: tuple[str, str], pooled_executor: Callable[[Job], Executor]) -> None:
    method = bl.BackLink(propagation_length=1, alpha=0.5, tail_memory="recompute")
    ours, theirs = (
        outcome(make, job_of(network(*(MAKES[n] for n in names)), method)) for make in (pooled_executor, LocalExecutor)
    )
    assert torch.equal(ours[0], theirs[0])
    assert [n for n in theirs[1] if not torch.equal(ours[1][n], theirs[1][n])] == []
    assert ours[2] == theirs[2]


def test_a_unit_that_cannot_be_sent_is_named(ray_executor: Callable[[Job], Executor]) -> None:
    training = job_of(network(NO_COPY["lock"][0], plain), bl.BackLink(propagation_length=1, link="error"))
    with pytest.raises(bl.ConfigError, match=r"units\[1\] cannot be sent to the process of its stage: .*lock"):
        ray_executor(training)
