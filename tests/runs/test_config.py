"""RunConfig: what it refuses, and its identity."""

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backlink_ray.errors import ConfigError
from backlink_ray.local.sizes import module_sizes
from backlink_ray.methods.catalogue import METHODS
from backlink_ray.nets.names import unit_count
from backlink_ray.options import default_of, options_of
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.runs.results import columns_of, config_of
from tests.users import imported_from, write_project

ONE_LINE = [
    ({"network": "resnet33"}, "network='resnet33' is not known"),
    ({"network": "vgg"}, "allowed: alexnet, vgg16, vit"),
    ({"dataset": "mnist"}, "dataset='mnist' is not known; allowed: cifar10-sample"),
    ({"head": "mlp"}, "head='mlp' is not known; allowed: fc, conv"),
    ({"method": "adam"}, "method='adam' is not known; allowed: bp, gll, backlink"),
    ({"num_modules": 17}, "num_modules=17 is out of range for resnet32 with 16 units; allowed 1..16"),
    (
        {"num_modules": 8, "propagation_length": 4},
        "propagation_length=4 exceeds 2, the smallest local module of resnet32 at K=8",
    ),
    ({"propagation_length": -1}, "propagation_length=-1 is out of range; allowed 0..smallest module"),
    ({"alpha": 1.01}, "alpha=1.01 is out of range; allowed 0..1"),
    ({"alpha": float("nan")}, "alpha=nan"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": 32.5}, "batch_size=32.5 is a float; allowed: int"),
    ({"executor": "spark"}, "allowed: auto, local, threads, ray"),
    ({"method": "gll", "beta": 0.5}, "beta=0.5 has no meaning for method='gll'; allowed for predsim"),
    ({"beta": 0.5}, "beta=0.5 has no meaning for method='backlink' on base='gll'; allowed for predsim"),
    ({"method": "gll", "beta": 7.0}, "beta=7.0 is out of range"),
    ({"method": "dgl", "base": "infopro"}, "base='infopro' has no meaning for method='dgl'; allowed for backlink"),
    ({"method": "gll", "alpha": 0.25}, "alpha=0.25 has no meaning for method='gll'; allowed for backlink"),
    (
        {"method": "bp", "num_modules": 8},
        "num_modules=8 has no meaning for method='bp'; allowed for gll, backlink, dgl",
    ),
    ({"method": "gll", "buffer_size": 3}, "buffer_size=3 has no meaning for method='gll'; allowed for dgl"),
    ({"mode": "async"}, "mode='async' is not known; allowed: exact, stale"),
    ({"method": "dgl", "buffer_size": 3}, "buffer_size=3 has no meaning with mode='exact'; allowed with mode='async'"),
    ({"method": "dgl", "mode": "stale"}, "mode='stale' is not known; allowed: exact, async"),
    ({"mode": "async", "buffer_size": 1.5}, "buffer_size=1.5 is a float; allowed: int"),
    ({"alpha": True}, "alpha=True is a bool; allowed: float"),
    ({"augment": 1}, "augment=1 is a int; allowed: bool"),
]


@pytest.mark.parametrize(("fields", "message"), ONE_LINE)
def test_refusals_name_value_rule_and_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=".") as caught:
        RunConfig(**fields)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["front", "back"]))
def test_sizes_sum_and_differ_by_one_at_most(units: int, modules: int, remainder: str) -> None:
    if modules > units:
        with pytest.raises(ConfigError):
            module_sizes(units, modules, remainder)
        return
    sizes = module_sizes(units, modules, remainder)
    assert sum(sizes) == units
    assert len(sizes) == modules
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=remainder == "front")


@given(
    st.sampled_from(["resnet8", "resnet32", "resnet110", "alexnet", "vgg16", "vit6"]),
    st.integers(1, 60),
    st.integers(0, 60),
)
def test_every_k_and_l_is_accepted_or_refused_by_the_rule(network: str, k: int, length: int) -> None:
    valid = k <= unit_count(network) and (k == 1 or length <= min(module_sizes(unit_count(network), k)[:-1]))
    if valid:
        assert RunConfig(network=network, num_modules=k, propagation_length=length).num_modules == k
    else:
        with pytest.raises(ConfigError):
            RunConfig(network=network, num_modules=k, propagation_length=length)


def test_run_id_depends_on_the_result_alone() -> None:
    one = RunConfig(num_modules=2, alpha=0.25)
    assert one.run_id == RunConfig(alpha=0.25, num_modules=2).run_id
    assert one.run_id == one.replace(executor="ray", link="error").run_id
    assert one.run_id != one.replace(seed=1).run_id
    free = RunConfig(method="dgl", mode="async")  # the executor decides in which order stages take their steps
    # Local takes the batch undivided, and rounds otherwise.
    whole = RunConfig(replicas=2, batch_norm="whole")
    assert all(each.run_id != each.replace(executor="ray").run_id for each in (free, whole))
    assert one.replace(alpha=1).run_id == one.replace(alpha=1.0).run_id


def test_defaults_never_change() -> None:
    """An identity holds only what differs from the defaults, so a new default would change the meaning of old runs."""
    assert {f.name: default_of(f) for f in dataclasses.fields(RunConfig)} == DEFAULTS


DEFAULTS = {
    "network": "resnet32", "dataset": "cifar10-sample", "method": "backlink", "head": "fc", "final_head": "auto",
    "num_modules": 4, "propagation_length": 2, "alpha": 0.5, "alpha_mode": "once", "body_scale": "one",
    "tail_memory": "retain", "link": "replica", "mode": "exact", "buffer_size": 2, "base": "gll", "beta": 0.99,
    "lambda1_first": 5.0, "lambda1_last": 0.5, "lambda2_first": 0.5, "lambda2_last": 1.0, "synthesizer_lr": 3e-05,
    "synthesizer_width": 0, "label_conditioning": False, "remainder": "front", "lr": 0.5,
    "momentum": 0.9, "weight_decay": 0.0001, "warmup_fraction": 0.05, "batch_size": 512, "epochs": 200, "augment":
    True, "validation_fraction": 0.0, "train_images": 0, "test_images": 0, "seed": 0, "torch_threads": 1,
    "executor": "auto", "sizes": (), "options": {}, "loss": "cross-entropy", "optimizer": "sgd",
    "memory_format": "channels_last", "precision": "fp32", "compile": "none", "graph": False, "replicas": 1,
    "batch_norm": "part",
}  # fmt: skip


def test_identities_never_change() -> None:
    """Identities of commit d29e88c: if they change, old run folders are no longer found."""
    found = {
        RunConfig(num_modules=2).run_id: "4e208e06dd36aae9",
        RunConfig().run_id: "44136fa355b3678a",
        RunConfig(num_modules=2, alpha=0.25, base="infopro", lambda1_first=3).run_id: "f3b51b160907889d",
        RunConfig(method="gll", head="conv", lr=0.3).run_id: "d1d23181fc94cbef",
        RunConfig(method="dni", label_conditioning=True, synthesizer_width=128).run_id: "74dff7ff22fef6eb",
        RunConfig(method="bp", network="resnet110").run_id: "1237ef73b98fde6e",
        RunConfig(method="dgl", mode="async", buffer_size=3, seed=4).run_id: "6c37b130a79f715c",
    }
    assert list(found) == list(found.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_one_identity_for_all_values_that_mean_absence(method: str) -> None:
    """The value that means the absence of an option is accepted, so that a stored configuration can be read again."""
    config = RunConfig(method=method)
    assert RunConfig(**dataclasses.asdict(config)) == config
    if method == "gll":
        assert RunConfig(method=method, propagation_length=0, alpha=1.0, beta=0.99) == config
    if method == "bp":
        assert [RunConfig(method=method, num_modules=k) for k in (1, 4)] == [config, config]
        assert config.num_modules == 1


def test_replace_resets_options_that_the_new_run_lacks_unless_they_are_passed() -> None:
    linked = RunConfig(base="predsim", beta=0.5, alpha=0.25, num_modules=2, mode="stale")
    free = RunConfig(method="dgl", num_modules=2, mode="async", buffer_size=3)
    assert linked.replace(method="gll") == RunConfig(method="gll", num_modules=2)
    assert linked.replace(method="predsim") == RunConfig(method="predsim", beta=0.5, num_modules=2)
    assert free.replace(method="gll") == RunConfig(method="gll", num_modules=2)
    assert linked.replace(base="gll").beta == 0.99
    assert free.replace(mode="exact").buffer_size == 2
    assert linked.replace(method="bp") == RunConfig(method="bp")
    for changes in ({"method": "gll", "alpha": 0.25}, {"base": "gll", "beta": 0.5}, {"method": "bp", "num_modules": 2}):
        with pytest.raises(ConfigError, match="has no meaning for method="):
            linked.replace(**changes)
    with pytest.raises(ConfigError, match="method='adam' is not known"):
        linked.replace(method="adam")


def test_numbers_of_numpy_are_pythons() -> None:
    fields = {"num_modules": np.int64(2), "alpha": np.float32(0.25), "epochs": np.uint8(3), "augment": np.bool_(False)}
    found, plain = RunConfig(**fields), RunConfig(num_modules=2, alpha=0.25, epochs=3, augment=False)
    assert found.run_id == plain.run_id
    assert yaml.safe_dump(dataclasses.asdict(found)) == yaml.safe_dump(dataclasses.asdict(plain))
    assert {type(getattr(found, name)) for name in fields} == {int, float, bool}


def test_every_field_has_a_docstring_and_a_range() -> None:
    names = [f.name for f in dataclasses.fields(RunConfig)]
    assert sorted(options_of(RunConfig)) == sorted(names)
    source = "".join(inspect.getsource(part) for part in RunConfig.__mro__[:-1])
    assert [name for name in names if not re.search(rf'^    {name}: .*\n    """', source, re.M)] == []


# Every field but link, which changes no result, executor, which does so in mode async and with whole batch norms, and own
# options (below).
MEANT: tuple[dict[str, Any], ...] = (
    {"alpha_mode": "compound", "body_scale": "alpha", "tail_memory": "recompute", "propagation_length": 1, "alpha": 0.25,
     "base": "predsim", "beta": 0.5, "num_modules": 2, "head": "conv", "final_head": "native", "remainder": "back"},
    {"base": "infopro", "lambda1_first": 3.0, "lambda1_last": 0.7, "lambda2_first": 0.7, "lambda2_last": 0.7},
    {"method": "dni", "synthesizer_lr": 1e-4, "synthesizer_width": 8, "label_conditioning": True},
    {"method": "dgl", "mode": "async", "buffer_size": 3, "executor": "ray"},
    {"network": "resnet110", "dataset": "svhn", "loss": "torch.nn.functional:mse_loss", "memory_format": "contiguous",
     "precision": "bf16", "compile": "units", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "warmup_fraction": 0.1,
     "batch_size": 8, "epochs": 3, "augment": False, "validation_fraction": 0.1, "train_images": 9, "test_images": 9,
     "seed": 1, "torch_threads": 2},
    {"replicas": 3, "batch_norm": "whole", "batch_size": 6},
    {"optimizer": "torch.optim:AdamW", "graph": True, "sizes": (6, 10)},
)  # fmt: skip


def test_every_field_that_decides_the_result_is_part_of_the_identity() -> None:
    assert {name for fields in MEANT for name in fields} == set(options_of(RunConfig)) - {"link", "options"}
    for fields in MEANT:
        assert fields.keys() <= RunConfig(**fields).identity.keys()
    assert RunConfig(executor="ray", link="error").identity == {}


@pytest.mark.parametrize("changes", [{"method": ["x"]}, {"base": {"x": 1}}, {"lr": 10**400}, {"network": 3}])
def test_a_replacement_of_a_wrong_type_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        RunConfig().replace(**changes)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    write_project(tmp_path, "cfg")
    with imported_from(tmp_path):
        yield tmp_path


def test_import_paths_are_part_of_the_identity_by_name_and_digest(project: Path) -> None:
    run = RunConfig(network="cfg_model:network", optimizer="torch.optim:AdamW")
    of_file = hashlib.sha256((project / "cfg_model.py").read_bytes()).hexdigest()[:16]
    assert run.identity == {"network": f"cfg_model:network@{of_file}", "optimizer": "torch.optim:AdamW"}
    (project / "cfg_second.py").write_text((project / "cfg_model.py").read_text() + "# changed\n")
    digests = {
        RunConfig(network=f"{module}:network").identity["network"].split("@")[1]
        for module in ("cfg_model", "cfg_second")
    }
    assert len(digests) == 2


def test_own_options_are_complete_checked_and_stored(project: Path) -> None:
    run = RunConfig(method="cfg_method:Mine", options={"gamma": np.float32(0.5)})
    assert run.options == {"gamma": 0.5, "twice": False}
    assert RunConfig(method="cfg_method:Mine") == RunConfig(method="cfg_method:Mine", options={"gamma": 0.3})
    assert run.replace(gamma=0.25, lr=0.1) == RunConfig(method="cfg_method:Mine", options={"gamma": 0.25}, lr=0.1)
    assert run.replace(method="gll") == RunConfig(method="gll")
    assert run.run_id != run.replace(twice=True).run_id
    assert (run.alpha, run.propagation_length) == (1.0, 0)  # it has neither
    stored = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(run.replace(sizes=(3, 13)))))
    assert RunConfig(**stored) == run.replace(sizes=(3, 13))
    row = json.loads(json.dumps(columns_of(run.replace(sizes=(3, 13)))))
    assert (row["options.gamma"], row["sizes"]) == (0.5, "3 13")
    assert config_of(row) == run.replace(sizes=(3, 13))
    assert run.replace(sizes=(3, 13)).replace(sizes=[np.int64(3), 6, 7]) == run.replace(sizes=(3, 6, 7))
    assert getattr(build_method(run), "gamma") == 0.5  # noqa: B009
    on_base = RunConfig(base="cfg_method:Mine", options={"twice": True})
    assert getattr(build_method(on_base).base, "twice") is True  # type: ignore[attr-defined]  # noqa: B009


OWN = """
from dataclasses import dataclass
import backlink_ray as bl

@dataclass(frozen=True, kw_only=True)
class Clash(bl.Method):
    momentum: float = 0.5

@dataclass(frozen=True, kw_only=True)
class OtherDefault(bl.Method):
    beta: float = 0.1

@dataclass(frozen=True, kw_only=True)
class Required(bl.Method):
    gamma: float

@dataclass(frozen=True, kw_only=True)
class Longer(bl.BackLink):
    gamma: int = 1
    other: "Unknown | None" = None
"""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"gamma": 1.0}}, "options={'gamma': 1.0} has 'gamma', which method='backlink' does not have as an option"),
        ({"method": "cfg_method:Mine", "options": {"beta": 1.0}},
            "has 'beta', which method='cfg_method:Mine' does not have .*; allowed: gamma, twice; beta is given to the run"),
        ({"method": "cfg_method:Mine", "options": {"gamma": "x"}}, "gamma='x' is a str; allowed: float"),
        ({"method": "cfg_method:Mine", "options": {"gamma": float("nan")}}, "gamma=nan is out of range; allowed finite"),
        ({"method": "cfg_method:Mine", "options": {"gamma": [1]}},
            r"options\['gamma'\]=\[1\] is a list; allowed: bool, int, float or str"),
        ({"method": "cfg_method:Mine", "alpha": 0.25}, "alpha=0.25 has no meaning for method='cfg_method:Mine'"),
        ({"method": "cfg_model:network"}, "method='cfg_model:network' is no method; give a subclass of backlink_ray.Method"),
        ({"base": "cfg_model:network"}, "base='cfg_model:network' is no method"),
        ({"method": "cfg_absent:Mine"}, "method='cfg_absent:Mine' cannot be imported: there is no module cfg_absent"),
        ({"method": "cfg_own:Clash"}, "has a field 'momentum', which every run has; give it another name"),
        ({"method": "cfg_own:OtherDefault"}, "has the field beta=0.1, but every run has one of that name, 0.99 by default"),
        ({"method": "cfg_own:Required"}, "has no default value for its field 'gamma'"),
        ({"method": "cfg_own:Longer", "propagation_length": 5}, "propagation_length=5 exceeds 4"),
        ({"optimizer": "torch.optim:AdamW", "momentum": 0.5}, "momentum=0.5 is no argument of optimizer='torch.optim:AdamW'"),
        ({"sizes": (3, 3)}, r"sizes=\(3, 3\) sum to 6"),
        ({"sizes": (3, 13), "num_modules": 3}, "num_modules=3"),
        ({"sizes": (1, 15), "propagation_length": 2}, "propagation_length=2 exceeds 1"),
        ({"sizes": (0, 16)}, "=0 is out of range; allowed 1 or more"),
        ({"sizes": 3}, "sizes=3 is a int; allowed: tuple"),
        ({"method": "bp", "sizes": (8, 8)}, r"sizes=\(8, 8\) has no meaning for method='bp'"),
        ({"loss": "hinge"}, "loss='hinge' is not known; allowed: cross-entropy, or an import path MODULE:NAME"),
    ],
)  # fmt: skip
def test_parts_of_the_users_are_refused_by_name(project: Path, fields: dict[str, Any], message: str) -> None:
    (project / "cfg_own.py").write_text(OWN)
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig(**fields)
    assert "\n" not in str(caught.value)


def test_a_method_of_the_users_that_extends_backlink_takes_its_fields_from_the_run(project: Path) -> None:
    (project / "cfg_own.py").write_text(OWN)
    run = RunConfig(
        method="cfg_own:Longer", alpha=0.25, propagation_length=1, base="predsim", beta=0.5, options={"gamma": 2}
    )
    method: Any = build_method(run)
    assert (method.alpha, method.linked_units, method.base.beta, method.gamma) == (0.25, 1, 0.5, 2)
