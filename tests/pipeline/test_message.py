"""Messages are copied at most once on each side."""

import pickle
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from backlink_ray.pipeline.collective import Channel, Meeting, join
from backlink_ray.pipeline.exchange import Kind, Mailbox
from backlink_ray.pipeline.message import pack, unpack

T = TypeVar("T")
CPU = torch.device("cpu")
X = torch.randn(8, 6, 10, 12)
LAST = X.to(memory_format=torch.channels_last)
DENSE = [X, LAST, X.bfloat16(), LAST.bfloat16(), X[2:5], X.transpose(0, 2), X.double().mT, X > 0]
GAPS = [X[:, 1:], LAST[..., :-1], X[..., ::2], X[:1].expand(8, 6, 10, 12)]


def allocated(work: Callable[[], T]) -> tuple[T, list[int]]:
    """Return what a function returns, and the bytes of every piece of memory that torch has allocated for it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = work()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    return result, [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("tensor", DENSE)
def test_a_tensor_that_fills_its_memory_is_neither_copied_when_packed_nor_when_unpacked(tensor: Tensor) -> None:
    (data, layout), packing = allocated(lambda: pack(tensor))
    found, unpacking = allocated(lambda: unpack(data, layout))
    assert (packing, unpacking) == ([], [])
    assert data.data_ptr() == found.data_ptr() == tensor.data_ptr()
    assert data.numel() == layout.num_bytes == size(tensor)
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("tensor", GAPS)
def test_a_tensor_with_gaps_is_copied_once_on_each_side_at_most(tensor: Tensor) -> None:
    (data, layout), packing = allocated(lambda: pack(tensor))
    found, unpacking = allocated(lambda: unpack(data, layout))
    assert packing == [size(tensor)]
    assert len(unpacking) <= 1
    assert torch.equal(found, tensor)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("tensor", DENSE)
def test_the_object_store_gets_the_tensors_own_memory_and_gives_one_copy(tensor: Tensor, ray_here: None) -> None:
    import ray

    from backlink_ray.pipeline.objectstore import _to_message, _to_tensor

    message, sending = allocated(lambda: _to_message(tensor))
    given: list[pickle.PickleBuffer] = []
    ray.cloudpickle.dumps(message, protocol=5, buffer_callback=given.append)
    assert sending == []  # Ray itself copies what it is given, into its store
    assert [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in given] == [tensor.data_ptr()]
    stored = ray.get(ray.put(message))
    assert not stored[0].flags.writeable  # the store's own memory
    found, receiving = allocated(lambda: _to_tensor(stored, CPU))
    assert receiving == [size(tensor)]
    assert torch.equal(found, tensor)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("tensor", DENSE)
def test_torch_distributed_sends_the_tensors_own_memory_and_what_it_fills_is_received(
    tensor: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    filled: list[int] = []
    send, receive = Channel.send, Channel.receive

    def noted_send(self: Channel, message: Tensor) -> None:
        sent.append(message.data_ptr())
        send(self, message)

    def noted_receive(self: Channel, message: Tensor) -> Tensor:
        filled.append(message.data_ptr())
        return receive(self, message)

    monkeypatch.setattr(Channel, "send", noted_send)
    monkeypatch.setattr(Channel, "receive", noted_receive)
    meeting, here = Meeting("127.0.0.1"), []
    listening = threading.Thread(target=lambda: here.append(meeting.link(Mailbox(), 1, CPU, 5.0, 20.0)))
    listening.start()
    there = join(meeting.address, "127.0.0.1", Mailbox(), 0, CPU, 5.0, 20.0)
    listening.join()
    here[0].send(Kind.ACTIVATION, 0, tensor)
    found = there.receive(Kind.ACTIVATION, 0)
    here[0].close()
    there.close()
    assert tensor.data_ptr() in sent
    assert found.data_ptr() in filled
    assert found.stride() == tensor.stride()
    assert torch.equal(found, tensor)
