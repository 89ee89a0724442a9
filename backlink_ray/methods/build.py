"""Methods by name."""

from collections.abc import Callable

from backlink_ray.methods.backlink import BackLink
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL
from backlink_ray.methods.dni import DNI
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro
from backlink_ray.methods.predsim import PredSim
from backlink_ray.runs.config import RunConfig


def build_method(config: RunConfig, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.25,)) -> Method:
    """Return the method a run asks for, with its options; mean and std are the images' normalisation, per channel."""
    make = {
        "bp": BP,
        "gll": GLL,
        "dgl": lambda: DGL(mode=config.mode, buffer_size=config.buffer_size),
        "ddg": DDG,
        "backlink": lambda: _backlink(config, mean, std),
        "predsim": lambda: PredSim(beta=config.beta),
        "infopro": lambda: _infopro(config, mean, std),
        "dni": lambda: _dni(config),
    }
    methods: dict[str, Callable[[], Method]] = make
    return methods[config.method]()


def _backlink(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Method:
    return BackLink(
        propagation_length=config.propagation_length,
        alpha=config.alpha,
        alpha_mode=config.alpha_mode,
        body_scale=config.body_scale,
        tail_memory=config.tail_memory,
        link=config.link,
        mode=config.mode,
        buffer_size=config.buffer_size,
        base=build_method(config.replace(method=config.base, mode="exact"), mean, std),
    )


def _infopro(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Method:
    return InfoPro(
        lambda1=(config.lambda1_first, config.lambda1_last),
        lambda2=(config.lambda2_first, config.lambda2_last),
        mean=mean,
        std=std,
    )


def _dni(config: RunConfig) -> Method:
    return DNI(
        synthesizer_lr=config.synthesizer_lr,
        synthesizer_width=config.synthesizer_width,
        label_conditioning=config.label_conditioning,
    )
