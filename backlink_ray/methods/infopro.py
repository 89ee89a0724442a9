"""InfoPro: local learning that keeps information about the input by reconstructing it.

Card
    paper       Wang, Ni, Song, Yang, Huang, "Revisiting Locally Supervised Learning: an Alternative to End-to-end
                Training", ICLR 2021, Eq. (5), the form with a softmax loss
    loss        lambda1 BCE(decoder(features), image) + lambda2 CE(head), both weights linear in the module's index from
                the first to the last auxiliary module; the last module's is CE
    crosses     activations forward; nothing backward; every module needs the input image
    helper      decoder: bilinear resize to the image's size, conv3x3 to 12 - batch norm - ReLU - conv3x3 to the image's
                channels, sigmoid (inside the loss)
    defaults    (lambda1, lambda2) from (5, 0.5) to (0.5, 1); the published heads are "conv"
    deviations  the published code has weights for the contrastive form only; these are ours
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule, ModuleSpec
from backlink_ray.methods.base import Batch, Method
from backlink_ray.nets.resnet import conv3x3
from backlink_ray.options import number


@dataclass(frozen=True, kw_only=True)
class InfoProOptions:
    """Options of InfoPro."""

    lambda1_first: float = number(5.0)
    """infopro: weight of the reconstruction in the first auxiliary module ..."""
    lambda1_last: float = number(0.5)
    """... and in the last one, linear in between."""
    lambda2_first: float = number(0.5)
    """infopro: weight of the cross entropy in the first auxiliary module ..."""
    lambda2_last: float = number(1.0)
    """... and in the last one, linear in between."""


@dataclass(frozen=True, kw_only=True)
class InfoPro(InfoProOptions, Method):
    """Information propagation with a decoder and a softmax loss.

    Args:
        mean, std: of the images' normalisation, per channel: image in [0, 1] = input * std + mean, clamped. A job gives those
            of its training set.
    """

    name: ClassVar[str] = "infopro"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    @property
    def wants_inputs(self) -> bool:
        return True

    def for_data(self, train: LabelledSet) -> Method:
        if not train.is_images:
            raise ConfigError(
                f"method infopro reconstructs images, uint8 (N, C, H, W), but the inputs are {train.inputs.dtype} of shape "
                f"{tuple(train.inputs.shape)}; give images as uint8, with mean and std, or use another method"
            )
        return replace(self, mean=train.mean or (0.0,), std=train.std or (1.0,))

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        """Return the decoder; ConfigError if the features or the input have no height and width."""
        if len(spec.feature_shape) != 3 or len(spec.input_shape) != 3:
            raise ConfigError(
                f"method infopro reconstructs images from features (C, H, W), but module {spec.module_index} returns "
                f"{spec.feature_shape} from {spec.input_shape}; use fewer modules, or another method"
            )
        return Decoder(spec.feature_shape[0], spec.input_shape)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        """Return lambda1 BCE + lambda2 CE, or CE in the last module."""
        prediction = super().loss(module, features, batch)
        if module.is_last:
            return prediction
        image = self._image(batch.inputs).to(prediction.dtype)
        reconstruction = F.binary_cross_entropy_with_logits(module.helper(features), image)
        lambda1 = _weight(self.lambda1_first, self.lambda1_last, module.spec)
        lambda2 = _weight(self.lambda2_first, self.lambda2_last, module.spec)
        return lambda1 * reconstruction + lambda2 * prediction

    def _image(self, x: Tensor) -> Tensor:
        mean, std = (self._per_channel(values, x.dtype, x.device) for values in (self.mean, self.std))
        return (x * std + mean).clamp_(0, 1)

    def _per_channel(self, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return values as (1, C, 1, 1)."""
        key = (values, dtype, device)
        if key not in self._kept:
            self._kept[key] = torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[object, Tensor]:
        """Tensors that are made once, since to make one of Python's numbers is to wait for a GPU."""
        return {}


def _weight(first: float, last: float, spec: ModuleSpec) -> float:
    """Return the weight in one auxiliary module, linear from the first to the last of the K - 1."""
    return first + spec.module_index / max(1, spec.num_modules - 2) * (last - first)


class Decoder(nn.Module):
    """Maps features (N, C, h, w) to the logits of an image (N, channels, H, W)."""

    def __init__(self, width: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = image_shape[1:]
        self.conv1 = conv3x3(width, 12)
        self.bn = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, image_shape[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=True)
        return self.conv2(F.relu(self.bn(self.conv1(x))))  # type: ignore[no-any-return]
