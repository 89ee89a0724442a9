"""Operations: how many of torch's operations a piece of work takes; each costs a launch on a GPU, and microseconds of Python."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the ATen operations dispatched inside `with`, those of backward passes and optimizers included.

    Left out is what computes nothing: views and detach, memory without values (empty, new_empty), the profiler's marks. An
    operation on a list of tensors (_foreach_mul, _fused_sgd_) counts once. A compiled unit must not run inside.

    Attributes:
        by_name: the counts, such as {"aten::convolution": 33}.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Return how many there were."""
        return self.by_name.total()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition(".")[0]
        if name.startswith("aten::") and not func.is_view and not name.startswith(_NOTHING):
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


_NOTHING = ("aten::empty", "aten::new_empty", "aten::as_strided_", "aten::_unsafe_view")
