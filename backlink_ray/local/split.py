"""Split: cut a network into K local modules, each with a head."""

from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from backlink_ray.local.heads import HEADS, build_head
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec
from backlink_ray.local.sizes import module_sizes
from backlink_ray.nets.network import NATIVE, Network, uses_rng
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


def split(
    network: Network,
    num_modules: int,
    head: str = "fc",
    remainder: str = "front",
    final_head: str = "auto",
    seed: int = 0,
) -> list[LocalModule]:
    """Cut a network into K consecutive local modules.

    The last module's head is the network's classifier from now on, so network(x) is what the last module answers. A network
    may be split again: its units stay as they are, the other modules get new heads, and the last one gets the classifier of
    the family asked for, as trained as the network has it; only a family that the network has not had yet is made anew.

    Args:
        network: its units are shared with the modules, not copied.
        num_modules: K in 1..number of units.
        head: family of the auxiliary heads, "fc", "conv", "pool" or "mlp-sr".
        remainder: the first ("front") or the last ("back") modules have one more unit if K does not divide N.
        final_head: head of the last module. "native": the network's own classifier. "auto": the same family as the auxiliary
            heads; but the network's own classifier for "fc" (pool and linear in the paper's ResNets), and if the last
            features have no height and width.
        seed: of the initial weights of new heads.

    Raises:
        ConfigError: K, a name or the seed is not allowed.
    """
    asked = SplitOptions(num_modules=num_modules, head=head, final_head=final_head, remainder=remainder)
    num_modules, seed = asked.num_modules, SEED.read("seed", seed)
    facts = network.facts
    sizes = module_sizes(len(facts), num_modules, remainder, network.name)
    native = final_head == "native" or head == "fc" or len(facts[-1].shape) != 3
    modules = []
    for k, stop in enumerate(accumulate(sizes)):
        start = stop - sizes[k]
        chain = Chain(list(network.units)[start:stop], start, [fact.uses_rng for fact in facts[start:stop]])
        build, is_last = partial(build_head, head, network, stop - 1, seed), k == num_modules - 1
        classifier = network.switch_classifier(NATIVE if native else head, build) if is_last else build()
        spec = ModuleSpec(
            module_index=k, num_modules=num_modules, input_shape=network.input_shape,
            takes_integers=network.takes_integers,
            feature_shape=facts[stop - 1].shape, num_classes=network.num_classes, seed=seed,
        )  # fmt: skip
        modules.append(LocalModule(chain, classifier, _head_uses_rng(classifier, network, spec.feature_shape), spec))
    return modules


def _head_uses_rng(head: nn.Module, network: Network, shape: tuple[int, ...]) -> bool:
    dtype, device = network.dtype_and_device()
    return uses_rng(head, torch.zeros(2, *shape, dtype=dtype, device=device))
