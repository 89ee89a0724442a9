"""The settings table: every method that is tested by the shared contract."""

import backlink_ray as bl
from backlink_ray.methods.base import Method

SETTINGS: dict[str, Method] = {
    "bp": bl.BP(),
    "gll": bl.GLL(),
    "dgl": bl.DGL(),
    "predsim": bl.PredSim(),
    "infopro": bl.InfoPro(),
    "ddg": bl.DDG(),
    "dni": bl.DNI(synthesizer_lr=1e-3),
    "dni, labels": bl.DNI(synthesizer_lr=1e-3, synthesizer_width=5, label_conditioning=True),
    "backlink": bl.BackLink(propagation_length=1, alpha=0.25),
    "backlink, error": bl.BackLink(propagation_length=1, alpha=0.25, link="error"),
    "backlink, error, recompute": bl.BackLink(propagation_length=2, alpha=0.5, link="error", tail_memory="recompute"),
    "backlink, stale": bl.BackLink(propagation_length=2, alpha=0.25, mode="stale"),
    "backlink, compound": bl.BackLink(propagation_length=2, alpha=0.3, alpha_mode="compound", body_scale="alpha"),
    "backlink+dgl": bl.BackLink(propagation_length=2, alpha=0.5, base=bl.DGL()),
    "backlink+predsim": bl.BackLink(propagation_length=1, alpha=0.5, base=bl.PredSim()),
    "backlink+infopro": bl.BackLink(propagation_length=1, alpha=0.5, base=bl.InfoPro()),
    "backlink+infopro, error": bl.BackLink(propagation_length=1, alpha=0.5, base=bl.InfoPro(), link="error"),
}
