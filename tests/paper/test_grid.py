"""The grid: existing cells and their published errors, their recipes, and the choice of alpha."""

import math
from pathlib import Path

import pytest
import yaml

from backlink_ray.errors import ConfigError
from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.paper.cells import addresses, cells, choose, find, published_error_pct, rerun_cells
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import ALPHAS, Budget, recipe, with_alpha
from backlink_ray.runs.config import RunConfig

TABLES = Path(__file__).parents[3] / "shared" / "paper" / "tables.yaml"
OWN = "table3/cifar10/resnet32/conv/K4/"


def test_the_three_tables_have_the_177_cells_and_our_additional_ones() -> None:
    chosen = [cell for table in (2, 3, 4) for cell in choose(table)]
    assert {cell.address for cell in chosen} == {cell.address for cell in cells()}
    assert len(chosen) == len({cell.address for cell in chosen}) == 12 + 47 + 118
    assert sum(cell.num_modules == 1 for cell in chosen) == 12
    assert sum(cell.propagation_length == 0 for cell in chosen) == 12 + 47
    assert {OWN + method for method in ("dgl", "infopro", "predsim", "dni", "ddg", "infopro+l4")} <= set(addresses())
    assert not {cell.address for cell in rerun_cells()} & {cell.address for cell in chosen}


def test_published_errors() -> None:
    config = RunConfig(network="resnet32", dataset="cifar10", num_modules=4, propagation_length=3)
    assert published_error_pct(config) == 10.65
    assert published_error_pct(config.replace(dataset="cifar10-sample")) is None
    assert published_error_pct(RunConfig(network="resnet110", dataset="cifar10", method="bp", head="conv")) == 6.27


@pytest.mark.skipif(not TABLES.exists(), reason="the paper's tables are not beside the repository")
def test_every_error_equals_the_transcription() -> None:
    roman = {"II": 2, "III": 3, "IV": 4}
    facts = yaml.safe_load(TABLES.read_text())
    wanted = {}
    for cell in (*facts["cells"], *({**b, "l": 0} for b in facts["bp_baselines"])):
        if cell.get("source", "backlink") == "backlink" and cell["method"] in ("BP", "GLL", "BackLink"):
            head = "fc" if cell["classifier"] == "unstated" else cell["classifier"]
            place = f"table{roman[cell['table']]}/{cell['dataset'].lower()}/{cell['network'].lower()}/{head}"
            wanted[f"{place}/K{cell['K']}/l{cell['l']}"] = cell["error"]
    assert {c.address: c.error_pct for c in cells()} == pytest.approx(wanted)


def test_the_blank_cells_of_the_tables_are_those_the_rule_refuses() -> None:
    lengths: dict[str, set[int]] = {}
    for cell in cells():
        lengths.setdefault(cell.row, set()).add(cell.propagation_length)
    for row, of_row in lengths.items():
        for k in (2, 4, 8, 16):
            for length in of_row:
                network = row.split("/")[2]
                fits = k <= unit_count(network) and length <= longest_propagation(module_sizes(unit_count(network), k))
                assert (f"{row}/K{k}/l{length}" in addresses()) == fits


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("table2/cifar10/resnet110/fc/K16/l4", "cannot exist: propagation_length=4 exceeds 3"),
        ("table2/cifar10/resnet32/fc/K17/l1", "num_modules=17 is out of range for resnet32 with 16 units"),
        ("table2/cifar10/resnet33/fc/K4/l1", "network='resnet33' is not known"),
        ("table2/cifar10/alexnet/fc/K2/l3", "at K=2 this row has l0, l1, l2"),
        ("table2/cifar10/resnet32/fc/K4/dgl", "is not in the paper's tables"),
        (OWN + "infopro+l5", "cannot exist: propagation_length=5 exceeds 4"),
        ("resnet32", "is not an address; allowed: for example table2/"),
        ("table2/cifar10/resnet110/fc/K8/14", "nearest: table2/cifar10/resnet110/fc/K8/l4"),
    ],
)
def test_an_address_of_no_cell_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find(address)
    assert message in str(refused.value)


def test_cells_are_chosen_by_address_and_by_pattern() -> None:
    assert [c.address for c in choose(4, ["table4/cifar10-lt/resnet32/fc/K4/l1"])] == [
        "table4/cifar10-lt/resnet32/fc/K4/l1"
    ]
    both = choose(3, [OWN + "l4"], "table3/*/resnet32/*/K2/l?")
    assert [c.address.split("conv/")[1] for c in both] == ["K2/l0", "K2/l1", "K2/l2", "K2/l3", "K2/l4", "K4/l4"]
    assert {c.rerun for c in choose(3, (), "*/dgl")} == {"dgl"}
    assert not any(c.rerun for c in choose(3, (), "table3/*/l*"))
    with pytest.raises(ConfigError, match="matches no cell of table 2"):
        choose(2, (), "table3/*")
    with pytest.raises(ConfigError, match=r"is not in table 2; run studies/table_3\.py"):
        choose(2, [OWN + "l4"])


@pytest.mark.skipif(not TABLES.exists(), reason="the paper's tables are not beside the repository")
def test_the_recipe_is_the_papers() -> None:
    stated = yaml.safe_load(TABLES.read_text())["recipe_stated"]
    lr = stated["lr_linear"]
    for cell in cells():
        config = recipe(cell)
        network = {"alexnet": "AlexNet", "vgg16": "VGG16", "resnet110": "ResNet110"}.get(cell.network)
        fc = lr[network] if network else lr["ResNet32_STL10" if cell.dataset == "stl10" else "ResNet32_CIFAR"]
        assert config.lr == (stated["lr_conv"] if cell.head == "conv" else fc)
        assert config.batch_size == stated["batch_size"][cell.dataset.upper().removesuffix("-LT")]
        assert (config.epochs, config.momentum, config.weight_decay) == (200, 0.9, 1e-4)
        assert (config.num_modules, config.propagation_length) == (cell.num_modules, cell.propagation_length)
        assert (config.train_images, config.test_images, config.validation_fraction) == (0, 0, 0.0)


def test_methods_of_table_3_have_their_published_heads() -> None:
    heads = {name: recipe(find(OWN + name)).head for name in ("l0", "dgl", "infopro", "predsim", "predsim+l1")}
    assert heads == {"l0": "conv", "dgl": "mlp-sr", "infopro": "conv", "predsim": "pool", "predsim+l1": "pool"}
    assert recipe(find(OWN + "infopro+l4")).label == "backlink+infopro"


def row(config: RunConfig, val_error: float, test_error: float, status: str = "FINISHED") -> dict[str, object]:
    return {"run_id": config.run_id, "status": status, "val_error_pct": val_error, "test_error_pct": test_error}


CELL = find("table2/cifar10/resnet32/fc/K4/l2")
GRID = Grid(cells=(find("table2/cifar10/resnet32/fc/K4/l0"), CELL), seeds=(0, 1))


def test_alpha_is_chosen_by_the_held_out_error_and_never_by_the_test_error() -> None:
    candidates = GRID.candidates(CELL)
    assert tuple(candidates) == ALPHAS
    assert all(config.validation_fraction == 0.1 and config.seed == 0 for config in candidates.values())
    best_on_test = [row(config, 50 - 10 * alpha, 10 * alpha) for alpha, config in candidates.items() if alpha < 1]
    rows = [*best_on_test, row(candidates[1.0], 49.0, 99.0)]
    assert GRID.alpha(CELL, rows) == 0.75
    assert math.isnan(GRID.alpha(CELL, rows[:-1]))
    assert GRID.alpha(CELL, [*rows[:3], row(candidates[0.75], 1.0, 1.0, "FAILED"), rows[4]]) == 0.5
    assert math.isnan(GRID.alpha(CELL, [row(c, 1.0, 1.0, "FAILED") for c in candidates.values()]))
    assert {config.alpha for config in GRID.runs(CELL, rows)} == {0.75}
    assert all(config.validation_fraction == 0.0 for config in GRID.runs(CELL, rows))


def test_full_runs_are_added_when_alpha_is_known() -> None:
    first = GRID.todo([])
    assert [c.method for c in first] == ["gll"] * 2 + ["backlink"] * 4 + ["gll"]
    assert GRID.undecided([]) == (CELL,)
    rows = [row(config, 1 - alpha, 0.0) for alpha, config in GRID.candidates(CELL).items() if alpha < 1]
    rows.append(row(GRID.candidates(CELL)[1.0], 9.0, 0.0))
    assert [c.alpha for c in GRID.todo(rows) if c.method == "backlink" and not c.validation_fraction] == [0.75, 0.75]
    fixed = Grid(cells=(CELL,), seeds=(0, 1, 2), alphas=(0.5,))
    assert [(c.alpha, c.seed) for c in fixed.todo([])] == [(0.5, 0), (0.5, 1), (0.5, 2)]


def test_backlink_at_alpha_1_is_the_run_of_its_base() -> None:
    gll, own = recipe(GRID.cells[0]), recipe(find(OWN + "infopro+l4"))
    assert with_alpha(recipe(CELL), 1.0).run_id == gll.run_id
    assert with_alpha(own, 1.0).run_id == recipe(find(OWN + "infopro")).run_id


def test_a_smaller_budget_changes_the_recipe_and_says_so() -> None:
    budget = Budget(epochs=8, train_images=10_000, batch_size=128, lr=0.1)
    config = recipe(CELL, budget)
    assert (config.epochs, config.train_images, config.batch_size, config.lr) == (8, 10_000, 128, 0.1)
    assert budget.slug == "8epochs-10000images-b128-e0.1"
    assert budget.text == "not the paper's budget (8 epochs, the first 10,000 training images, batch 128, eta 0.1)"
    assert Budget().is_paper
    assert Budget().slug == ""
    assert not Budget(test_images=1000).is_paper
