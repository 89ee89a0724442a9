import inspect
from pathlib import Path

import pytest

from backlink_ray.tracking.journal import ExperimentInfo, Journal, NoTracker
from backlink_ray.tracking.spool import Event


def journal(folder: Path, experiment: str = "e") -> Journal:
    return Journal(folder, ExperimentInfo(experiment=experiment))


def kinds(events: list[Event]) -> list[tuple[str, str, str]]:
    return [(event.kind, event.run_id, event.status) for event in events]


def test_every_call_is_one_line(tmp_path: Path) -> None:
    book, file = journal(tmp_path / "spool", "table2/resnet"), tmp_path / "config.yaml"
    file.write_text("K: 4")
    book.start_run("r", "K04 l2", {"K": 4, "eta": 0.5, "m@p": "x"}, {"study": "s"}, {"name": "cifar10"})
    book.log_metrics("r", {"loss": 1.5, "a//b": 2}, 3)
    book.log_artifact("r", file, "a/../b")
    book.end_run("r", "FINISHED", "done")
    start, point, artifact, end = book.spool.read()
    assert start.experiment.startswith("table2-resnet-")
    assert start.name.startswith("K04-l2-")
    assert {"K": "4", "eta": "0.5"}.items() <= start.params.items()
    assert point.step == 3
    assert point.metrics["loss"] == 1.5
    assert (tmp_path / "spool" / artifact.path).read_text() == "K: 4"
    assert ".." not in artifact.folder.split("/")
    assert (end.status, end.reason) == ("FINISHED", "done")
    assert start.time_ms <= point.time_ms <= artifact.time_ms <= end.time_ms


def test_a_value_that_is_not_finite_becomes_a_tag(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.start_run("r", "r", {}, {})
    book.log_metrics("r", {"a": float("nan"), "b": float("-inf"), "c": 1.0}, 4)
    event = book.spool.read()[-1]
    assert event.metrics == {"c": 1.0}
    assert event.tags == {"nonfinite.a": "nan at step 4", "nonfinite.b": "-inf at step 4"}


def test_a_resumed_run_repeats_no_point(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.start_run("r", "r", {}, {})
    for step in range(4):
        book.log_metrics("r", {"a": step / 3}, step)
    resumed = journal(tmp_path)
    resumed.start_run("r", "r", {}, {})
    for step in range(2, 6):
        resumed.log_metrics("r", {"a": step / 3}, step)
    assert [event.step for event in resumed.spool.read() if event.kind == "metrics"] == [0, 1, 2, 3, 4, 5]


def test_parameters_are_written_once(tmp_path: Path) -> None:
    journal(tmp_path).start_run("r", "r", {"K": 4}, {})
    book = journal(tmp_path)
    book.start_run("r", "r", {"K": 4, "l": 2}, {})
    size = book.spool.size_bytes()
    with pytest.raises(ValueError, match="K: '4' -> '8'"):
        book.start_run("r", "r", {"K": 8}, {})
    assert book.spool.size_bytes() == size


def test_bad_calls_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    book = journal(tmp_path / "spool")
    file = tmp_path / "x"
    file.write_text("x")
    for run_id in ("", "..", "a/b", "a'b", "x" * 101, "a\0"):
        with pytest.raises(ValueError, match="is unusable"):
            book.start_run(run_id, "n", {}, {})
    with pytest.raises(ValueError, match="was never started"):
        book.log_metrics("q", {"a": 1}, 0)
    with pytest.raises(ValueError, match="was never started"):
        book.log_artifact("q", file)
    with pytest.raises(ValueError, match="was never started"):
        book.end_run("q", "FINISHED", "")
    with pytest.raises(ValueError, match="status='DONE' is unknown"):
        book.end_run("q", "DONE", "")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="step=-1 is out of range"):
        book.log_metrics("q", {"a": 1}, -1)
    with pytest.raises(FileNotFoundError):
        book.log_artifact("q", tmp_path / "missing")
    assert book.spool.read() == []


def test_an_artifact_is_kept_as_it_was(tmp_path: Path) -> None:
    book, file = journal(tmp_path / "spool"), tmp_path / "report.html"
    book.start_run("r", "r", {}, {})
    for text in ("one", "two", "one"):
        file.write_text(text)
        book.log_artifact("r", file)
    file.unlink()
    kept = [tmp_path / "spool" / event.path for event in book.spool.read()[1:]]
    assert [path.read_text() for path in kept] == ["one", "two", "one"]
    assert kept[0] == kept[2]


def test_text_is_what_every_database_takes(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.start_run("r", "r", {"p": "x" * 9000, "q": "a\0\ud800b"}, {"t": "y" * 9000})
    (event,) = book.spool.read()
    assert [len(event.params["p"]), event.params["q"], len(event.tags["t"])] == [6000, "a?b", 8000]


def test_leaving_ends_what_nobody_else_will_end(tmp_path: Path) -> None:
    dead = journal(tmp_path)
    for run_id in ("a", "b", "c"):
        dead.start_run(run_id, run_id, {}, {})
    dead.end_run("c", "FAILED", "loss")
    dead._presence.leave()  # as the system does when a process dies
    book = journal(tmp_path)
    book.start_run("b", "b", {}, {})
    book.end_run("b", "FINISHED", "")
    book.start_run("d", "d", {}, {})
    size = len(book.spool.read())
    book.leave()
    ends = book.spool.read()[size:]
    assert kinds(ends) == [("end", "a", "KILLED"), ("end", "d", "KILLED")]
    assert ends[0].reason == "the process that tracked the run died"
    book.leave()
    assert len(book.spool.read()) == size + 2


def test_leaving_does_not_end_the_runs_of_the_living(tmp_path: Path) -> None:
    one, other = journal(tmp_path), journal(tmp_path)
    one.start_run("a", "a", {}, {})
    other.start_run("b", "b", {}, {})
    other.leave()
    assert kinds(one.spool.read())[2:] == [("end", "b", "KILLED")]
    one.leave()
    assert kinds(one.spool.read())[3:] == [("end", "a", "KILLED")]


def test_no_tracker_has_the_face_of_a_tracker() -> None:
    tracking = pytest.importorskip("backlink_ray.tracking.tracker")
    face = [name for name in vars(NoTracker) if not name.startswith("_")]
    assert face == ["start_run", "log_metrics", "log_artifact", "end_run", "close", "link", "command"]
    for name in face:
        assert inspect.signature(getattr(NoTracker, name)) == inspect.signature(getattr(tracking.Tracker, name))
    nothing = NoTracker()
    nothing.start_run("..", "", {}, {})
    assert (nothing.close(), nothing.link(), nothing.command()) == (0, "", "")
