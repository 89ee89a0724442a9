"""Group: the stages of one module, one for each part of the batch, which average what they have computed."""

from collections.abc import Sequence

from torch import Tensor

from backlink_ray.pipeline.exchange import Kind, Link


class Group:
    """One stage's connections to the others of its module.

    Each sends all it has to every other, and sums up by itself, in the order of the parts: so all have the same bits, those of
    one process.

    Args:
        links: one for each part, None in this stage's own place; none for a stage without others.
    """

    def __init__(self, links: Sequence[Link | None] = ()) -> None:
        self._links = links

    def gather(self, step: int, own: Tensor) -> list[Tensor]:
        """Return the tensors that the stages give, in the order of the parts."""
        for link in self._links:
            if link:
                link.send(Kind.PART, step, own)
        return [link.receive(Kind.PART, step) if link else own for link in self._links]

    def close(self) -> None:
        """Close the links."""
        for link in self._links:
            if link:
                link.close()


ALONE = Group()
