"""WholeNorm: the batch norms of a stage, while they take the statistics of the whole batch, not of the stage's own part.

torch.nn.SyncBatchNorm does so on GPUs only, and through a process group.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Given a tensor, returns those of all parts, in their order.
Exchange = Callable[[Tensor], list[Tensor]]


@contextmanager
def whole_batch_norms(modules: Iterable[nn.Module], exchange: Exchange) -> Iterator[None]:
    """Have the modules' batch norms normalise by the whole batch inside `with`; all parts must call them in the same order."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, exchange)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, exchange: Exchange, x: Tensor) -> Tensor:
    """Return a batch norm's output for x (N, C, ...), and move its running statistics."""
    if not norm.training:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)
    y, mean, variance, count = _Normalise.apply(x, norm.weight, norm.bias, norm.eps, exchange)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean), factor)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), factor)
    return y  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """Normalisation by mean and variance over all parts; parts exchange two numbers a channel in either direction.

    Each part's loss is a mean over its own samples, and the gradients that come of this are averaged over the parts: so the
    error at x is what one process has, times the number of parts, as all of a part's errors are.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, exchange: Exchange
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        over, shape = [0, *range(2, x.dim())], [-1 if i == 1 else 1 for i in range(x.dim())]
        mean = _wide(x).mean(over)
        own = torch.cat([mean, (x - mean.view(shape)).square().mean(over)])  # torch.var_mean takes ten times as long
        means, variances = (parts := torch.stack(exchange(own))).chunk(2, dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean) ** 2).mean(dim=0)
        like = mean if weight is None else weight
        y = F.batch_norm(x, mean.to(like), variance.to(like), weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.over, ctx.shape, ctx.exchange = over, shape, exchange
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, len(parts) * x.numel() / x.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        error, shape = _wide(gradients[0]), ctx.shape
        normed = (x - mean.view(shape)) * scale.view(shape)
        at_bias, at_weight = error.sum(ctx.over), (error * normed).sum(ctx.over)
        at_x = None
        if ctx.needs_input_grad[0]:
            means = torch.cat([at_bias, at_weight]) * (x.shape[1] / x.numel())
            of_error, of_product = torch.stack(ctx.exchange(means)).mean(dim=0).chunk(2)
            at_x = error - of_error.view(shape) - normed * of_product.view(shape)
            at_x = (at_x * (scale if weight is None else scale * weight).view(shape)).to(x.dtype)
        if weight is None:
            return at_x, None, None, None, None
        return at_x, at_weight.to(weight), at_bias.to(weight), None, None


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
