"""Split: cut a network into K local modules, each with a head."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.heads import HEADS, MakeHead, build_head
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec
from backlink_ray.local.sizes import module_sizes
from backlink_ray.nets.network import NATIVE, Network
from backlink_ray.nets.probe import examine
from backlink_ray.nets.sharing import check_apart
from backlink_ray.options import check_options, choice, whole
from backlink_ray.seeds import SEED


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a network is cut."""

    num_modules: int = whole(4, allowed="1..number of units", unused=1)
    """K: number of local modules, 1..number of units."""
    head: str = choice(*HEADS, default="fc")
    """Auxiliary classifier of every local module: fc (pool, linear), conv, pool (PredSim's) or mlp-sr (DGL's)."""
    final_head: str = choice("auto", "native")
    """Head of the last module: auto (same family as the auxiliary heads) or native (the network's own classifier)."""
    remainder: str = choice("front", "back")
    """Which modules have one more unit if K does not divide the number of units: front or back."""

    def __post_init__(self) -> None:
        check_options(self)


@torch.inference_mode(False)  # parameters of heads made under it could not be trained
def split(
    network: Network,
    num_modules: int = 0,
    head: str | MakeHead = "fc",
    remainder: str = "front",
    final_head: str = "auto",
    seed: int = 0,
    *,
    sizes: Sequence[int] = (),
) -> list[LocalModule]:
    """Cut a network into K consecutive local modules.

    The last module's head is the network's classifier from now on, so network(x) is what the last module answers. A network
    may be split again: its units stay as they are, the other modules get new heads, and the last one gets the classifier of
    the family asked for, as trained as the network has it; only a family that the network has not had yet is made anew.

    Args:
        network: its units are shared with the modules, not copied.
        num_modules: K in 1..number of units; not needed with `sizes`.
        head: family of the auxiliary heads, "fc", "conv", "pool" or "mlp-sr"; or a callable (feature_shape, num_classes) ->
            module, which maps features (N, *feature_shape) to logits (N, num_classes). It is called once per module, under
            the seed of its last unit, and its head keeps the weights that it was built with.
        remainder: the first ("front") or the last ("back") modules have one more unit if K does not divide N.
        final_head: head of the last module. "native": the network's own classifier. "auto": the same family as the auxiliary
            heads; but the network's own classifier for "fc" (pool and linear in the paper's ResNets), for a callable, and
            if the last features have no height and width.
        seed: of the initial weights of new heads.
        sizes: units of each module, for example (3, 3, 2); () for modules of equal size.

    Raises:
        ConfigError: no `Network`, or K, sizes, a name, the seed or a head is not allowed; the network is as it was then.
    """
    _check_network(network)
    family = head if isinstance(head, str) or not callable(head) else "fc"
    asked = SplitOptions(num_modules=num_modules, head=family, final_head=final_head, remainder=remainder)
    seed, facts = SEED.read("seed", seed), network.facts
    sizes = module_sizes(len(facts), asked.num_modules, remainder, network.name, sizes)
    native = final_head == "native" or family == "fc" or len(facts[-1].shape) != 3
    modules, num_modules, before = list[LocalModule](), len(sizes), network.classifier
    try:
        for k, stop in enumerate(accumulate(sizes)):
            start = stop - sizes[k]
            chain = Chain(list(network.units)[start:stop], start, [fact.uses_rng for fact in facts[start:stop]])
            build, is_last = partial(build_head, head, network, stop - 1, seed), k == num_modules - 1
            classifier = network.switch_classifier(NATIVE if native else family, build) if is_last else build()
            spec = ModuleSpec(
                module_index=k, num_modules=num_modules, input_shape=network.input_shape,
                takes_integers=network.takes_integers,
                feature_shape=facts[stop - 1].shape, num_classes=network.num_classes, seed=seed,
            )  # fmt: skip
            modules.append(
                LocalModule(chain, classifier, _head_uses_rng(classifier, network, stop - 1, is_last, k), spec)
            )
        check_apart([*((f"heads[{k}]", module.head) for k, module in enumerate(modules[:-1])), *network.places()])
    except BaseException:
        network.classifier = before
        raise
    return modules


def _head_uses_rng(head: nn.Module, network: Network, unit_index: int, is_last: bool, k: int) -> bool:
    name, features = "classifier" if is_last else f"heads[{k}]", network.features(unit_index)
    logits, facts = examine(name, head, features)
    if logits.shape != (2, network.num_classes):
        raise ConfigError(
            f"{name} maps {tuple(features.shape)} to {tuple(logits.shape)}; allowed: logits (N, {network.num_classes})"
        )
    return facts.uses_rng


def _check_network(network: nn.Module) -> None:
    """Refuse what is no Network; one that is compiled as a whole, too, since modules call its units one by one."""
    if not isinstance(getattr(network, "_orig_mod", network), Network):
        raise ConfigError(
            f"network is a {type(network).__name__}; allowed: bl.Network(units, classifier, example), or "
            "bl.Network.from_sequential(sequential, example)"
        )
    if not isinstance(network, Network) or network._compiled_call_impl is not None:
        raise ConfigError(
            "torch.compile(network) would have no effect, since modules call the units one by one; compile these: "
            "bl.Network([torch.compile(unit) for unit in units], ...)"
        )
