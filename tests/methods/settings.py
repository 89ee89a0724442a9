"""The settings table: every method that is tested by the shared contract, with what is known of it."""

from dataclasses import dataclass

import backlink_ray as bl
from backlink_ray.methods.base import Method


@dataclass(frozen=True)
class Setting:
    """A method as the contract tests it; `k1_is_bp` where one module of it is backpropagation."""

    method: Method
    k1_is_bp: bool = True


SETTINGS: dict[str, Setting] = {
    "bp": Setting(bl.BP()),
    "gll": Setting(bl.GLL()),
    "dgl": Setting(bl.DGL()),
    "predsim": Setting(bl.PredSim()),
    "infopro": Setting(bl.InfoPro()),
    "ddg": Setting(bl.DDG()),
    "dni": Setting(bl.DNI(synthesizer_lr=1e-3)),
    "dni, labels": Setting(bl.DNI(synthesizer_lr=1e-3, synthesizer_width=5, label_conditioning=True)),
    "backlink": Setting(bl.BackLink(propagation_length=1, alpha=0.25)),
    "backlink, error": Setting(bl.BackLink(propagation_length=1, alpha=0.25, link="error")),
    "backlink, error, recompute": Setting(
        bl.BackLink(propagation_length=2, alpha=0.5, link="error", tail_memory="recompute")
    ),
    "backlink, stale": Setting(bl.BackLink(propagation_length=2, alpha=0.25, mode="stale")),
    "backlink, compound": Setting(
        bl.BackLink(propagation_length=2, alpha=0.3, alpha_mode="compound", body_scale="alpha")
    ),
    "backlink+dgl": Setting(bl.BackLink(propagation_length=2, alpha=0.5, base=bl.DGL())),
    "backlink+predsim": Setting(bl.BackLink(propagation_length=1, alpha=0.5, base=bl.PredSim())),
    "backlink+infopro": Setting(bl.BackLink(propagation_length=1, alpha=0.5, base=bl.InfoPro())),
    "backlink+infopro, error": Setting(bl.BackLink(propagation_length=1, alpha=0.5, base=bl.InfoPro(), link="error")),
}
