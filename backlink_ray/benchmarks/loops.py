"""Loops: training loops to compare, each on one prepared batch: in plain torch, through `Trainer`, and parts of a step alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.benchmarks.jobs import modules_of, random_images
from backlink_ray.benchmarks.rounds import Run
from backlink_ray.local.engine import Engine, compiled
from backlink_ray.local.module import LocalModule, StepSeed
from backlink_ray.nets.build import build_network
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method, engine_of
from backlink_ray.train.trainer import Trainer

_LR = 0.01


class Given:
    """What every loop of a comparison gets: a network's name, and a random batch on a device, prepared in advance."""

    def __init__(self, network: str, batch_size: int, device: str) -> None:
        noise = random_images(batch_size)
        self.network, self.images, self.labels = network, noise.prepared().to(device), noise.labels.to(device)
        self.device = self.images.device


def plain_loop(given: Given, engine: Engine, *, fused: bool = True) -> Run:
    """Return a training loop as one writes it without this library, with the settings of an engine.

    Args:
        fused: update all parameters by one operation; False: as torch.optim.SGD does by default.
    """
    network = build_network(given.network).to(given.device)
    engine.arrange_weights([network])
    units = [compiled(unit, given.device) if engine.compile == "units" else unit for unit in network.units]
    sgd = _sgd(network.parameters(), fused)
    images = engine.arrange(given.images)

    def step() -> None:
        with engine.autocast(given.device):
            x = images
            for unit in units:
                x = unit(x)
            logits = network.classifier(x)
        loss = F.cross_entropy(engine.widen(logits), given.labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()

    return _repeated(step, engine, given.device)


def trainer_loop(given: Given, config: RunConfig) -> Run:
    """Return `Trainer.step` of a configuration, again and again; its data is `bench data`'s subject."""
    engine = engine_of(config)
    modules = [module.to(given.device) for module in modules_of(config)]
    trainer = Trainer(modules, build_method(config), _LR, engine=engine)
    images = engine.arrange(given.images)
    return _repeated(lambda: trainer.step(images, given.labels), engine, given.device)


def beyond_bp(given: Given, config: RunConfig) -> Run:
    """Return what a step of a configuration computes and BP's does not, alone.

    That is forward, backward and update of the auxiliary heads on features of their shape, and the second backward of the
    linked units, from an error at their output, through graphs that are kept, without the gradient at their input.
    """
    engine = engine_of(config)
    modules = [module.to(given.device) for module in modules_of(config)]
    engine.arrange_weights(modules)
    length, step_seed, x = config.propagation_length, StepSeed(engine=engine), engine.arrange(given.images)
    heads: list[tuple[LocalModule, Tensor]] = []
    links: list[tuple[Tensor, list[nn.Parameter], Tensor]] = []
    for module in modules[:-1]:
        with torch.no_grad():
            x = module.body(length)(x, StepSeed(engine=replace(engine, compile="none")))
        output = module.tail(length)(x.requires_grad_(), step_seed)
        x = output.detach()
        heads.append((module, x.detach().requires_grad_()))
        if length:
            links.append((output, list(module.tail(length).parameters()), torch.randn_like(output)))
    sgd = _sgd([p for module, _ in heads for p in module.head.parameters()])

    def step() -> None:
        for module, features in heads:
            with engine.autocast(given.device):
                loss = F.cross_entropy(module.logits(features, step_seed), given.labels)
            loss.backward()
            features.grad = None
        sgd.step()
        sgd.zero_grad()
        for output, parameters, error in links:
            torch.autograd.grad(output, parameters, error, retain_graph=True)

    return _repeated(step, engine, given.device)


def _sgd(parameters: Iterable[nn.Parameter], fused: bool = True) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, _LR, 0.9, weight_decay=1e-4, nesterov=True, fused=fused or None)


def _repeated(step: Callable[[], object], engine: Engine, device: torch.device) -> Run:
    def run(steps: int) -> None:
        with engine.running(device):
            for _ in range(steps):
                step()

    return run
