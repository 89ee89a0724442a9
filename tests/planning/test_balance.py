"""The balance is the best of all cuts."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backlink_ray.errors import ConfigError
from backlink_ray.planning.balance import Balance


@given(st.data(), st.integers(1, 8), st.integers(1, 3))
def test_no_other_cut_has_a_cheaper_worst_module(data: st.DataObject, count: int, smallest: int) -> None:
    numbers = data.draw(st.lists(st.integers(0, 9), min_size=(count + 1) ** 2, max_size=(count + 1) ** 2))
    costs = np.array(numbers, np.float64).reshape(count + 1, count + 1)

    def worst(sizes: list[int]) -> float:
        stops = np.cumsum(sizes)
        return max(costs[stop - size, stop] for size, stop in zip(sizes, stops, strict=True))

    balance = Balance(costs, smallest)
    for num_modules in (4, 2, 3, 1):  # some are found from what is known of others
        cuts = [[b - a for a, b in pairwise((0, *c, count))] for c in combinations(range(1, count), num_modules - 1)]
        cuts = [sizes for sizes in cuts if all(size >= smallest for size in sizes[:-1])]
        if cuts:
            found = balance.sizes(num_modules)
            assert found in cuts
            assert worst(found) == min(map(worst, cuts))
        else:
            with pytest.raises(ConfigError, match="units or more"):
                balance.sizes(num_modules)
