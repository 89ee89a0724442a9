"""StateCheck: what a state must be before it is saved, and before a run goes on from it: finite, and of its job."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from torch import Tensor

from backlink_ray.errors import ConfigError, NotFiniteError
from backlink_ray.local.module import LocalModule
from backlink_ray.local.weights import SHOWN
from backlink_ray.methods.base import Method
from backlink_ray.train.executor import Job
from backlink_ray.train.optim import updaters_of
from backlink_ray.train.state import PARTS, TrainState, check_state

_METHOD_STATE = re.compile(
    r"modules\.(?P<module>\d+)\.(link\.(?P<link>\d+)|error|replay(\.\d+)?|stash\.\d+\.(step|input[.\w]*|weights\.(?P<weight>.+)))"
)


class StateCheck:
    """Checks states of a job.

    Args:
        job: its modules have the names, shapes and types that a state must have. Buffers that are not finite when a run starts,
            such as a mask of attention, may be so in a state.
    """

    def __init__(self, job: Job) -> None:
        self._modules, self._method = job.method.prepare(job.modules), job.method
        self._updaters = updaters_of(job.method, self._modules, job.optimizer)
        own = [(name, buffer) for module in job.modules for name, buffer in module.named_state()]
        self._may_be_infinite = {name for name, tensor in own if not (tensor.requires_grad or _is_finite(tensor))}

    def __call__(self, state: TrainState) -> None:
        """Check a state.

        Raises:
            NotFiniteError: a tensor has a NaN or an infinite number; it is named.
            ConfigError: a tensor is missing, unknown, or of another shape or type; the first ones are named.
        """
        check_state(self._modules, state)
        known = {name for updater in self._updaters for name in updater.names}
        wrong = [name for name in state.optimizer if name.rpartition("/")[0] not in known]
        wrong += _misfits(state.method_state, self._modules, self._method)
        if wrong:
            names = ", ".join(islice(wrong, SHOWN))
            raise ConfigError(f"{names} do not fit; allowed: a state of the same network, method and optimizer")
        for updater in self._updaters:
            updater.check(state.optimizer)
        for part in PARTS:
            for name, tensor in getattr(state, part).items():
                if not _is_finite(tensor) and name not in self._may_be_infinite:
                    raise NotFiniteError(f"{name} is not finite after step {state.step - 1}; try a smaller lr")


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _misfits(found: dict[str, Tensor], modules: Iterable[LocalModule], method: Method) -> Iterator[str]:
    """Yield the names of a method state's tensors that no module can take."""
    by_index = {module.module_index: module for module in modules}
    for name, tensor in found.items():
        match = _METHOD_STATE.fullmatch(name)
        module = by_index.get(int(match["module"])) if match else None
        if not match or not module:
            yield name
        elif match["link"] or match["weight"]:
            linked = [parameter for _, parameter in method.linked_parameters(module)]
            weights = dict(module.chain.named_parameters())
            own = (
                linked[int(match["link"]) : int(match["link"]) + 1] if match["link"] else [weights.get(match["weight"])]
            )
            if [tensor.shape] != [each.shape for each in own if each is not None]:
                yield name
