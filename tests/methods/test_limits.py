"""Known limits: settings at which one method equals another, in float64."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.local.module import LocalModule, ModuleSpec, StepSeed
from backlink_ray.methods.base import Method
from backlink_ray.methods.dni import ConvSynthesizer
from backlink_ray.methods.predsim import similarity
from tests.examples import batch, different, tiny_network


def modules_of(k: int, head: str = "fc") -> list[LocalModule]:
    return bl.split(tiny_network(6).double(), k, head=head)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    names = [n for n in b if not n.startswith("helpers.")]
    assert [n for n in names if not torch.equal(a[n], b[n])] == []


@pytest.mark.parametrize(
    "method",
    [bl.DGL(), bl.PredSim(beta=0.0), bl.InfoPro(lambda1_first=0, lambda1_last=0, lambda2_first=1, lambda2_last=1)],
    ids=lambda m: m.name,
)
@pytest.mark.parametrize("head", ["fc", "pool", "mlp-sr"])
def test_without_its_second_loss_a_method_is_gll_with_its_head(method: Method, head: str) -> None:
    same(bl.gradients(modules_of(3, head), method, *batch()), bl.gradients(modules_of(3, head), bl.GLL(), *batch()))


@pytest.mark.parametrize("base", [bl.DGL(), bl.PredSim(), bl.InfoPro()], ids=lambda m: m.name)
def test_backlink_on_a_base_without_a_link_is_the_base(base: Method) -> None:
    linked = bl.gradients(modules_of(3), bl.BackLink(propagation_length=0, base=base), *batch())
    own = bl.gradients(modules_of(3), base, *batch())
    assert different(linked, own) == []


@pytest.mark.parametrize("base", [bl.PredSim(), bl.InfoPro()], ids=lambda m: m.name)
def test_the_link_carries_the_bases_loss(base: Method) -> None:
    """With alpha 0 the tail learns from the next module's loss alone, with the base's second loss unless that is the last."""
    images, labels = batch()
    found = bl.gradients(modules_of(2), bl.BackLink(propagation_length=1, alpha=0.0, base=base), images, labels)
    plain = bl.gradients(modules_of(2), bl.BackLink(propagation_length=1, alpha=0.0), images, labels)
    same(
        {n: g for n, g in found.items() if n.startswith("units.2.")},
        {n: g for n, g in plain.items() if "units.2." in n},
    )
    three = bl.gradients(modules_of(3), bl.BackLink(propagation_length=1, alpha=0.0, base=base), images, labels)
    gll = bl.gradients(modules_of(3), bl.BackLink(propagation_length=1, alpha=0.0), images, labels)
    assert not torch.equal(three["units.1.0.weight"], gll["units.1.0.weight"])


class Oracle(nn.Module):
    """Knows the following modules, and therefore the true gradient."""

    def __init__(self, following: list[LocalModule]) -> None:
        super().__init__()
        self.following = [following]  # in a list, so that parameters() does not find them

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            y = start
            for module in self.following[0]:
                y = module.chain(y, StepSeed())
            loss = F.cross_entropy(self.following[0][-1].logits(y, StepSeed()), labels)
            return torch.autograd.grad(loss, start)[0]


@dataclass(frozen=True, kw_only=True)
class Perfect(bl.DNI):
    modules: list[LocalModule] = field(default_factory=list)

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        return Oracle(self.modules[spec.module_index + 1 :])


@pytest.mark.parametrize("k", [2, 3])
def test_a_perfect_synthetic_gradient_is_bp(k: int) -> None:
    modules = modules_of(k)
    for module in modules:
        module.train()
    found = bl.gradients(modules, Perfect(modules=modules), *batch())
    bp = bl.gradients(modules_of(k), bl.BP(), *batch())
    assert max(float((found[n] - bp[n]).abs().max()) for n in bp) < 1e-12


def test_a_synthesizer_moves_towards_the_error_that_came_back() -> None:
    """Its gradient is the derivative of the squared distance, computed here by finite differences."""
    method = bl.DNI(synthesizer_lr=1e-3)
    modules = method.prepare(modules_of(2))
    images, labels = batch()
    with torch.no_grad():
        weight = modules[0].helper.last.weight  # type: ignore[union-attr]
        weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(1e-3)
    found = bl.gradients(modules, method, images, labels)["helpers.0.last.weight"]

    def distance(change: float) -> float:
        with torch.no_grad():
            weight[0, 0, 2, 2] += change
            y = modules[0].chain(images, StepSeed())
            synthetic = modules[0].helper.train()(y, labels)
            weight[0, 0, 2, 2] -= change
        start = y.detach().requires_grad_()
        loss = F.cross_entropy(modules[1].logits(modules[1].chain(start, StepSeed()), StepSeed()), labels)
        return float((synthetic - torch.autograd.grad(loss, start)[0]).square().sum())

    slope = (distance(1e-6) - distance(-1e-6)) / 2e-6
    assert abs(slope - float(found[0, 0, 2, 2])) < 1e-6 * max(1, abs(slope))


def test_a_synthesizer_adds_its_labels_before_the_first_batch_norm() -> None:
    """conv + embedding - batch norm - ReLU - conv - batch norm - ReLU - conv, batch norm written out."""
    synthesizer = ConvSynthesizer(4, 6, 10).double().train()
    torch.nn.init.normal_(synthesizer.last.weight)
    y, labels = torch.randn(8, 4, 5, 5, dtype=torch.float64), batch()[1]

    def norm_relu(x: Tensor) -> Tensor:
        x = x - x.mean(dim=(0, 2, 3), keepdim=True)
        return (x / (x.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()).clamp(min=0)

    weights = dict(synthesizer.named_parameters())
    inside = F.conv2d(y, weights["first.0.weight"], padding=2) + weights["labels.weight"][labels][:, :, None, None]
    inside = norm_relu(F.conv2d(norm_relu(inside), weights["second.0.weight"], padding=2))
    expected = F.conv2d(inside, weights["last.weight"], padding=2)
    assert torch.allclose(synthesizer(y, labels), expected, rtol=0, atol=1e-12)


def test_synthetic_gradients_start_at_zero() -> None:
    found = bl.gradients(modules_of(3), bl.DNI(), *batch())
    assert all(not found[n].any() for n in found if n.startswith(("units.0.", "units.3.")))
    assert found["units.5.0.weight"].any()
    assert found["helpers.1.last.weight"].any()
    assert not found[
        "helpers.0.last.weight"
    ].any()  # the next module passes no error back before its own synthesizer has learned


def test_similarity_is_the_cosine_of_centred_channel_deviations() -> None:
    x = torch.randn(5, 7, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([torch.stack([channel.std() for channel in image]) for image in x])
    expected = torch.corrcoef(rows)
    assert torch.allclose(similarity(x), expected, atol=1e-6)
    labels = F.one_hot(torch.tensor([0, 1, 0]), 4).double()
    assert torch.allclose(similarity(labels)[0], torch.tensor([1.0, -1 / 3, 1.0], dtype=torch.float64), atol=1e-6)


def first_features(method: Method) -> tuple[LocalModule, Tensor, Tensor, Tensor]:
    """Return the first of two modules with its helper, its features in training mode, and images with labels."""
    module = method.prepare(modules_of(2, "conv"))[0].train()
    images, labels = batch()
    return module, module.chain(images, StepSeed()), images, labels


def reported(method: Method) -> float:
    return float(bl.Trainer(modules_of(2, "conv"), method, lr=0.0).step(*batch())[0])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_predsim_is_its_definition(beta: float) -> None:
    """(1 - beta) CE + beta |S(branch) - S(labels)|^2 / N^2, rows and correlations computed one by one."""
    module, y, _, labels = first_features(bl.PredSim(beta=beta))
    branch = F.conv2d(y, module.helper.map.weight, padding=1)  # type: ignore[union-attr, arg-type]
    rows = torch.stack([torch.stack([channel.std() for channel in image]) for image in branch])
    wanted = torch.tensor([[1.0 if a == b else -1 / 9 for b in labels] for a in labels], dtype=y.dtype)
    matching = (torch.corrcoef(rows) - wanted).square().sum() / len(labels) ** 2
    prediction = F.cross_entropy(module.logits(y, StepSeed()), labels)
    expected = ((1 - beta) * prediction + beta * matching).item()
    assert abs(reported(bl.PredSim(beta=beta)) - expected) < 1e-6


def test_infopro_is_its_definition() -> None:
    """lambda1 BCE(decoder, the denormalised image) + lambda2 CE, the binary cross entropy written out."""
    method = bl.InfoPro(
        lambda1_first=2.0, lambda1_last=7.0, lambda2_first=0.25, lambda2_last=9.0,
        mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
    )  # fmt: skip
    module, y, images, labels = first_features(method)
    shown = torch.stack(
        [(images[:, c] * s + m).clamp(0, 1) for c, (m, s) in enumerate(zip(method.mean, method.std, strict=True))], 1
    )
    p = torch.sigmoid(module.helper(y))
    reconstruction = -(shown * p.log() + (1 - shown) * (1 - p).log()).mean()
    prediction = F.cross_entropy(module.logits(y, StepSeed()), labels)
    assert abs(reported(method) - (2.0 * reconstruction + 0.25 * prediction).item()) < 1e-9


@pytest.mark.parametrize("lambda_", ["lambda1", "lambda2"])
def test_infopro_weights_are_linear_from_the_first_to_the_last_auxiliary_module(lambda_: str) -> None:
    """Four modules, three of them auxiliary: one loss has the weights 5, 2.75 and 0.5, the other 0."""
    found = []
    for ends in ((5.0, 0.5), (1.0, 1.0), (0.0, 0.0)):
        weights = {f"{name}_{end}": 0.0 for name in ("lambda1", "lambda2") for end in ("first", "last")}
        weights |= {f"{lambda_}_first": ends[0], f"{lambda_}_last": ends[1]}
        trainer = bl.Trainer(bl.split(tiny_network(8).double(), 4), bl.InfoPro(**weights), lr=0.0)
        found.append(trainer.step(*batch())[:3])
    assert torch.allclose(found[0] / found[1], torch.tensor([5.0, 2.75, 0.5], dtype=torch.float64))
    assert not found[2].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: bl.BackLink(propagation_length=-1),
            "propagation_length=-1 is out of range; allowed 0..smallest module",
        ),
        (lambda: bl.BackLink(alpha=2.0), "alpha=2.0 is out of range; allowed 0..1"),
        (lambda: bl.BackLink(tail_memory="drop"), "tail_memory='drop' is not known; allowed: retain, recompute"),
        (
            lambda: bl.gradients(modules_of(3), bl.BackLink(propagation_length=3), *batch()),
            "propagation_length=3 exceeds 2",
        ),
        (lambda: bl.PredSim(beta=1.5), "beta=1.5 is out of range; allowed 0..1"),
        (lambda: bl.InfoPro(lambda1_last=-1.0), "lambda1_last=-1.0 is out of range; allowed at least 0, finite"),
        (lambda: bl.gradients(modules_of(2), bl.DGL(mode="async"), *batch()), "mode='async' does not keep step"),
        (lambda: bl.DNI(synthesizer_lr=0.0), "synthesizer_lr=0.0 is out of range; allowed above 0"),
        (
            lambda: bl.DNI(synthesizer_width=-1),
            r"synthesizer_width=-1 is out of range; allowed 0 \(as the features\) or more",
        ),
        (lambda: bl.BackLink(link="wire"), "link='wire' is not known; allowed: replica, error"),
        (
            lambda: bl.gradients(bl.split(bl.build_network("vit3"), 2), bl.InfoPro(), *batch()),
            r"method infopro reconstructs images from features \(C, H, W\), but module 0 returns \(64, 192\)",
        ),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(bl.ConfigError, match=message):
        make()  # type: ignore[operator]
