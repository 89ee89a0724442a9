"""A storage folder that was moved: what is tracked from then on is in the new place alone, and what was before is found there."""

from dataclasses import replace
from pathlib import Path

import pytest

from backlink_ray.tracking.mlflow_sink import MlflowClient, MlflowSink
from backlink_ray.tracking.uri import default_tracking_uri
from tests.tracking.mlflow_store import a_run


@pytest.mark.timeout(120)
def test_artifacts_move_with_the_store(storage: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "table.md", tmp_path / "new ? place"
    file.write_text("one")
    run = a_run(artifacts=[file])
    MlflowSink(default_tracking_uri(storage)).log(run)
    elsewhere = "s3://bucket/mlartifacts/elsewhere"
    MlflowClient(default_tracking_uri(storage)).create_experiment("elsewhere", elsewhere)
    storage.rename(new)
    uri = default_tracking_uri(new)
    MlflowSink(uri).log(replace(run, run_id="s"))
    assert not storage.exists()
    assert len(list(new.rglob("table.md"))) == 2
    client = MlflowClient(uri)
    found = {each.name: each for each in client.search_experiments() if each.name != "Default"}
    assert found.pop("elsewhere").artifact_location == elsewhere
    (experiment,) = found.values()
    places = {each.info.artifact_uri for each in client.search_runs([experiment.experiment_id])}
    assert len(places) == 2
    assert all(place.startswith(f"{experiment.artifact_location}/") for place in places)
    assert experiment.artifact_location == f"{(new / 'mlartifacts').as_uri()}/{experiment.name}"
