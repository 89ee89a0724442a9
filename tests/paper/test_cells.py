"""The paper's numbers, against the transcription beside the repository."""

from pathlib import Path

import pytest
import yaml

from backlink_ray.paper.cells import cells, published_error_pct
from backlink_ray.runs.config import RunConfig

TABLES = Path(__file__).parents[3] / "shared" / "paper" / "tables.yaml"


def test_one_number() -> None:
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
