"""Message: a tensor as bytes, and how to make the same tensor of them again."""

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """What a tensor's bytes do not say: type, shape, the strides in which they lie, and those that the receiver gets."""

    dtype: torch.dtype
    shape: torch.Size
    order: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return how many bytes they are."""
        return self.shape.numel() * self.dtype.itemsize


def pack(tensor: Tensor) -> tuple[Tensor, Layout]:
    """Return bytes (N,), uint8, and their layout; a view of a tensor that fills its memory, in whatever order, else one copy.

    Channels last, or transposed, the same values may be summed up in another order, so the receiver gets them as they were.
    """
    tensor = tensor.detach()
    packed = tensor if _fills_its_memory(tensor) else tensor.contiguous()
    in_order = packed.as_strided((packed.numel(),), (1,))
    # Elements of an expanded tensor share memory, which cannot be written.
    strides = packed.stride() if 0 in tensor.stride() else tensor.stride()
    return in_order.view(torch.uint8), Layout(tensor.dtype, tensor.shape, packed.stride(), strides)


def _fills_its_memory(tensor: Tensor) -> bool:
    """Return whether a tensor's elements lie side by side, in any order: then torch gives a copy the same strides."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def unpack(data: Tensor, layout: Layout) -> Tensor:
    """Return the tensor of these bytes, which it shares where they lie in its own order; else it is one copy."""
    dtype, shape, order, strides = layout
    if not data.numel():
        return torch.empty_strided(shape, strides, dtype=dtype, device=data.device)
    packed = data.view(dtype).as_strided(shape, order)
    if order == strides:
        return packed
    return torch.empty_strided(shape, strides, dtype=dtype, device=data.device).copy_(packed)
