"""The conformance suite that every link back-end passes: two ends, one in this thread and one elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backlink_ray.errors import LinkError
from backlink_ray.pipeline.exchange import CAPACITY, Kind

Pair = tuple[Any, Any]


def carries_every_kind_bit_for_bit(pair: Pair) -> None:
    left, right = pair
    for kind in Kind:
        if kind is Kind.FRESH_ACTIVATION:  # not received by step
            continue
        tensor = torch.randn(3, 5)
        left.send(kind, 4, tensor)
        assert torch.equal(right.receive(kind, 4), tensor)
        right.send(kind, 9, tensor[0])
        assert torch.equal(left.receive(kind, 9), tensor[0])


def kinds_do_not_wait_for_each_other(pair: Pair) -> None:
    left, right = pair
    left.send(Kind.ACTIVATION, 1, torch.ones(2))
    left.send(Kind.LOCAL_GRADIENT, 0, torch.zeros(2))
    assert right.receive(Kind.LOCAL_GRADIENT, 0).sum() == 0
    assert right.receive(Kind.ACTIVATION, 1).sum() == 2


def keeps_the_order_of_steps(pair: Pair) -> None:
    left, right = pair
    for step in (5, 6):
        left.send(Kind.ACTIVATION, step, torch.full((1,), float(step)))
    assert [float(right.receive(Kind.ACTIVATION, step)) for step in (5, 6)] == [5.0, 6.0]


def what_is_received_may_be_changed(pair: Pair) -> None:
    left, right = pair
    left.send(Kind.ACTIVATION, 0, torch.ones(200_000))
    received = right.receive(Kind.ACTIVATION, 0)
    received.add_(1)
    assert float(received.sum()) == 400_000


def a_sender_waits_for_a_slow_receiver(pair: Pair) -> None:
    """At most CAPACITY messages of a kind are in the mailbox and as many on their way, whatever other kinds do."""
    left, right = pair

    def send_all() -> None:
        for step in range(2 * CAPACITY + 1):
            left.send(Kind.ACTIVATION, step, torch.ones(1))

    with pytest.raises(LinkError, match="activation of step .* (had no room|was not taken)"):
        send_all()
    assert float(right.receive(Kind.ACTIVATION, 0)) == 1.0


def refuses_the_wrong_step(pair: Pair) -> None:
    left, right = pair
    left.send(Kind.ACTIVATION, 2, torch.ones(1))
    with pytest.raises(LinkError, match="of step 3 was expected, but that of step 2 arrived"):
        right.receive(Kind.ACTIVATION, 3)


def a_wait_ends(pair: Pair) -> None:
    with pytest.raises(LinkError, match=r"link_gradient of step 8 did not arrive within 0\.5 s"):
        pair[1].receive(Kind.LINK_GRADIENT, 8)


def takes_empty_tensors(pair: Pair) -> None:
    pair[0].send(Kind.LOCAL_GRADIENT, 0, torch.empty(0))
    assert pair[1].receive(Kind.LOCAL_GRADIENT, 0).numel() == 0


def keeps_values_type_shape_and_strides(pair: Pair) -> None:
    """In another layout the same values may be summed up in another order."""
    x, last = torch.randn(4, 3, 5, 6), {"memory_format": torch.channels_last}
    dense = [
        x, x.to(**last), x.bfloat16().to(**last), x.bfloat16(), x[:, :, :1, :1].contiguous(), x[:, :, :1, :1].to(**last),
        x[:, :1].to(**last), x.transpose(0, 2), x[1:3], torch.empty(0, 3, 5, 6).to(**last), torch.tensor(3.0), x > 0,
        x.double().mT,
    ]  # fmt: skip
    gaps = [x[:, 1:], x[..., ::2], x.to(**last)[..., :-1], x[:1, :, :1, :1].expand(4, 3, 5, 6)]
    for step, tensor in enumerate([*dense, *gaps]):
        pair[0].send(Kind.ACTIVATION, step, tensor)
        found = pair[1].receive(Kind.ACTIVATION, step)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
        assert found.stride() == tensor.stride() or step >= len(dense)


def an_activation_may_be_used_again(pair: Pair) -> None:
    """The mailboxes of this test keep one activation; changing the received tensor does not change the kept one."""
    left, right = pair
    left.send(Kind.FRESH_ACTIVATION, 3, torch.ones(4))
    step, received = right.receive_any(Kind.FRESH_ACTIVATION)
    received.zero_()
    assert (step, 3) == (right.receive_any(Kind.FRESH_ACTIVATION)[0], step)
    assert right.receive_any(Kind.FRESH_ACTIVATION)[1].sum() == 4


RULES: list[Callable[[Pair], None]] = [
    carries_every_kind_bit_for_bit, kinds_do_not_wait_for_each_other, keeps_the_order_of_steps,
    a_sender_waits_for_a_slow_receiver,
    what_is_received_may_be_changed, refuses_the_wrong_step, a_wait_ends, takes_empty_tensors,
    keeps_values_type_shape_and_strides, an_activation_may_be_used_again,
]  # fmt: skip
