"""DNI: decoupled neural interfaces, modules that update with a synthetic gradient and never wait for the true one.

Card
    paper       Jaderberg et al., "Decoupled Neural Interfaces using Synthetic Gradients", ICML 2017
    rule        module k < K updates with the gradient that its synthesizer predicts from y_k; module K with its CE
    crosses     activations forward; backward the error at the next module's input, which only trains the synthesizer
    helper      synthesizer: conv5x5 - batch norm - ReLU, twice, then conv5x5 initialised to zero; for features without height
                and width a linear map initialised to zero; with label conditioning an embedding of the labels is added
                between the first convolution and its batch norm
    loss        of the synthesizer: the squared distance to the true error; modules before the last have no other loss, and
                theirs is reported as 0
    defaults    Adam 3e-5 for synthesizers, no label conditioning, as wide as the features
    deviations  the published synthesizers are 128 channels wide (`synthesizer_width` 128)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec
from backlink_ray.methods.base import Batch, LocalResult, Method, Named
from backlink_ray.methods.state import MethodState
from backlink_ray.options import flag, number, whole


@dataclass(frozen=True, kw_only=True)
class DNIOptions:
    """Options of DNI."""

    synthesizer_lr: float = number(3e-5, sys.float_info.min, allowed="above 0, finite")
    """dni: learning rate of Adam for the synthesizers."""
    synthesizer_width: int = whole(0, allowed="0 (as the features) or more")
    """dni: channels inside a synthesizer; 0: as many as the features."""
    label_conditioning: bool = flag(False)
    """dni: synthesizers are conditioned on the labels (cDNI)."""


@dataclass(frozen=True, kw_only=True)
class DNI(DNIOptions, Method):
    """Decoupled neural interfaces."""

    name: ClassVar[str] = "dni"

    @property
    def link_kind(self) -> str:
        return "error"

    @property
    def helper_lr(self) -> float:
        return self.synthesizer_lr

    @property
    def needs_classes(self) -> bool:
        return self.label_conditioning

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        classes = spec.num_classes if self.label_conditioning else 0
        if len(spec.feature_shape) == 3:
            return ConvSynthesizer(spec.feature_shape[0], self.synthesizer_width, classes)
        return LinearSynthesizer(spec.feature_shape[-1], classes)

    def local_parameters(self, module: LocalModule) -> Named:
        """Yield the units, and the head of the last module; no other head has a loss."""
        return module.network_named()

    def linked_parameters(self, module: LocalModule) -> Named:
        return module.helper_named()

    def local_backward(
        self, module: LocalModule, body: Graph, tail: Graph, batch: Batch, state: MethodState, *, retain: bool = False
    ) -> LocalResult:
        """Backpropagate the synthetic gradient; in the last module, its loss."""
        if module.is_last:
            return super().local_backward(module, body, tail, batch, state)
        with batch.step_seed.engine.autocast(tail.output.device):
            synthesis = Graph(module.helper, tail.output, batch.labels, wants_input_gradient=False)
        gradients, error = body.backward(synthesis.output)
        return LocalResult(synthesis.output.new_zeros(()), gradients, [], error, synthesis)

    def link_backward(self, graph: Graph, error: Tensor) -> list[Tensor]:
        """Return the synthesizer's gradients of |synthetic - true|^2, summed."""
        return graph.backward(2 * (graph.output - error), to_input=False)[0]

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        return list(link)


class ConvSynthesizer(nn.Module):
    """Maps features (N, C, H, W), and labels (N,) if classes > 0, to a gradient of the features' shape."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        hidden = hidden or width
        self.first = nn.Sequential(_conv5x5(width, hidden), nn.BatchNorm2d(hidden), nn.ReLU())
        self.second = nn.Sequential(_conv5x5(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU())
        self.last = _zero_initialised(_conv5x5(hidden, width))
        self.labels = nn.Embedding(classes, hidden) if classes else None

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        convolution, norm, relu = self.first
        y = convolution(x)
        if self.labels is not None:
            y = y + self.labels(labels)[:, :, None, None]
        return self.last(self.second(relu(norm(y))))  # type: ignore[no-any-return]


class LinearSynthesizer(nn.Module):
    """Maps features (..., C), and labels (N,) if classes > 0, to a gradient of the features' shape."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.last = _zero_initialised(nn.Linear(width, width))
        self.labels = _zero_initialised(nn.Embedding(classes, width)) if classes else None

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.last(x)
        if self.labels is not None:
            embedded = self.labels(labels)
            y = y + (embedded if x.dim() == 2 else embedded[:, None])
        return y  # type: ignore[no-any-return]


def _conv5x5(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 5, padding=2, bias=False)


def _zero_initialised(module: nn.Module) -> nn.Module:
    # A module must not move until its synthesizer has learned something.
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
