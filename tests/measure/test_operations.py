"""Operations: counted exactly, in forward, backward and update."""

import torch
from torch import nn

from backlink_ray.benchmarks.loops import Given, plain_loop
from backlink_ray.benchmarks.step import PLAIN
from backlink_ray.measure.operations import Operations


def test_what_computes_nothing_does_not_count() -> None:
    x = torch.ones(2, 3)
    with Operations() as counted:
        torch.empty(2).new_empty(3)
        x.detach().reshape(6).view(3, 2).t().expand(2, 2, 3)
        assert counted.total == 0
        x.t().contiguous().add_(1)
    assert counted.by_name == {"aten::clone": 1, "aten::add_": 1}


def test_a_backward_pass_and_an_update_count() -> None:
    linear = nn.Linear(3, 2, bias=False)
    sgd = torch.optim.SGD(linear.parameters(), lr=0.1)
    with Operations() as counted:
        linear(torch.ones(4, 3)).sum().backward()
        sgd.step()
    # ones, product, sum; ones, the weight's gradient; the update.
    assert counted.by_name == {"aten::ones": 1, "aten::mm": 2, "aten::sum": 1, "aten::ones_like": 1, "aten::add_": 1}


def test_the_operations_of_a_plain_step_of_resnet8() -> None:
    step = plain_loop(Given("resnet8", 4, "cpu"), PLAIN, fused=False)
    step(2)  # the first step makes the momentum
    with Operations() as counted:
        step(1)
    convolutions, residuals, weights = 9, 3, 9 + 2 * 9 + 2
    each = "convolution native_batch_norm convolution_backward native_batch_norm_backward"
    assert {counted.by_name[f"aten::{name}"] for name in each.split()} == {convolutions}
    # Weight decay, momentum (twice), Nesterov, step; a batch norm counts its batches.
    update, relus = 5 * weights, convolutions - 2  # not after the convolutions of the two shortcuts
    head = (
        "mean addmm _log_softmax nll_loss_forward ones_like nll_loss_backward _log_softmax_backward_data mm mm sum div"
    )
    assert counted.total == 5 * convolutions + 2 * relus + 2 * residuals + update + len(head.split())
