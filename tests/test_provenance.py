import sys
from pathlib import Path

import pytest
import torch

from backlink_ray.provenance import describe
from backlink_ray.seeds import derive_seed, seeded
from backlink_ray.text import typed_program


def test_a_seed_depends_on_every_argument_and_on_nothing_else() -> None:
    seeds = {derive_seed(*a) for a in ((0, "order"), (1, "order"), (0, "crop"), (0, "order", 1), (0, "order", 1, 2))}
    assert len(seeds) == 5
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1) == 2961819992523135983
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_drawing_with_a_seed_leaves_the_default_generator_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(0, "weights"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "weights"):
        assert torch.equal(torch.rand(3), first)


def test_programs_are_named_as_they_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(here))
    assert typed_program("mlflow") == "mlflow"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typed_program("mlflow") == str(here / "mlflow")
    (tmp_path / "mlflow").write_text("another environment's")
    (tmp_path / "mlflow").chmod(0o755)
    assert typed_program("mlflow") == str(here / "mlflow")
    assert typed_program("no-such-program") == "no-such-program"


def test_the_record_says_what_a_number_was_measured_with() -> None:
    record = describe()
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["cpu_cores"] >= 1
    assert record["memory_gib"] > 0
