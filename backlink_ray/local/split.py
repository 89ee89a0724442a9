"""Split: cut a network into K local modules, each with a head."""

from itertools import accumulate

import torch
from torch import nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.heads import HEADS, build_head
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec
from backlink_ray.local.sizes import module_sizes
from backlink_ray.nets.network import Network, uses_rng


def split(
    network: Network,
    num_modules: int,
    head: str = "fc",
    remainder: str = "front",
    balance: str = "count",
    final_head: str = "auto",
    seed: int = 0,
) -> list[LocalModule]:
    """Cut a network into K consecutive local modules.

    Args:
        network: its units are shared with the modules, not copied.
        num_modules: K in 1..number of units.
        head: family of the auxiliary heads, "fc", "conv", "pool" or "mlp-sr".
        remainder: the first ("front") or the last ("back") modules hold one unit more when K does not divide N.
        balance: "count" makes the numbers of units equal.
        final_head: head of the last module. "auto": of the same family as the auxiliary heads, where "fc" is the network's
            own classifier (pool and linear in the paper's ResNets), as with any family after features without height and
            width; "native": the network's own classifier always.
        seed: of the heads' initial weights.

    Raises:
        ConfigError: K or a name out of range.
    """
    if balance != "count" or final_head not in ("auto", "native"):
        raise ConfigError(
            f"balance={balance!r}, final_head={final_head!r}; allowed: balance count, final_head auto or native"
        )
    if head not in HEADS:
        raise ConfigError(f"head={head!r} is not known; allowed: {', '.join(HEADS)}")
    facts = network.facts
    sizes = module_sizes(len(facts), num_modules, remainder, network.name)
    modules = []
    for k, stop in enumerate(accumulate(sizes)):
        start = stop - sizes[k]
        chain = Chain(list(network.units)[start:stop], start, [fact.random for fact in facts[start:stop]])
        own = k == num_modules - 1 and (final_head == "native" or head == "fc" or len(facts[-1].shape) != 3)
        classifier = network.classifier if own else build_head(head, network, stop - 1, seed)
        spec = ModuleSpec(
            module_index=k, num_modules=num_modules, input_shape=network.input_shape,
            feature_shape=facts[stop - 1].shape, num_classes=network.num_classes, seed=seed,
        )  # fmt: skip
        modules.append(LocalModule(chain, classifier, _step_seed(classifier, network, spec.feature_shape), spec))
    return modules


def _step_seed(head: nn.Module, network: Network, shape: tuple[int, ...]) -> bool:
    dtype, device = network.dtype_and_device()
    return uses_rng(head, torch.zeros(2, *shape, dtype=dtype, device=device))
