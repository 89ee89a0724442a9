import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backlink_ray.text import slug
from backlink_ray.tracking.spool import Event, Ledger, Spool, by_run, metric_key

ROOT = Path(__file__).parents[2]
EVIL = [
    "..",
    ".",
    "",
    "/etc/passwd",
    "../../x",
    "a%2fb",
    "a\\b",
    "a\0b",
    "x" * 300,
    "~",
    "-rf",
    " ",
    "ü" * 200,
    ".hidden",
]


def metrics(run_id: str = "r", step: int = 0, **values: float) -> Event:
    return Event(kind="metrics", run_id=run_id, time_ms=1, step=step, metrics=values)


def test_an_event_comes_back_as_it_went(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "study")
    start = Event(kind="start", run_id="r", time_ms=1, experiment="e", params={"K": "4"}, tags={"study": "α"})
    events = [
        start,
        metrics(step=3, a=1 / 3, b=-0.0, c=5e-324),
        Event(kind="end", run_id="r", time_ms=2, status="KILLED"),
    ]
    for event in events:
        spool.append(event)
    assert Spool(tmp_path, "study").read() == events
    assert spool.path == tmp_path / "study.jsonl"
    assert spool.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", range(1, 40, 3))
def test_a_torn_last_line_is_skipped_and_a_new_one_begins_after_it(tmp_path: Path, kept: int) -> None:
    spool = Spool(tmp_path, "study")
    spool.append(metrics(a=1))
    whole = spool.size_bytes()
    spool.append(metrics(a=2))
    os.truncate(spool.path, whole + kept)
    assert spool.read() == [metrics(a=1)]
    Spool(tmp_path, "study").append(metrics(a=3))
    assert spool.read() == [metrics(a=1), metrics(a=3)]


def test_follow_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "study")
    for i in range(5):
        spool.append(metrics(step=i))
    offsets = [offset for _, offset in spool.follow(0)]
    assert [event.step for event, _ in spool.follow(offsets[2])] == [3, 4]
    assert list(spool.follow(offsets[-1])) == []
    assert offsets[-1] == spool.size_bytes()


def test_a_line_of_a_newer_version_and_a_foreign_line_do_no_harm(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "study")
    spool.path.write_bytes(
        b'{"kind":"end","run_id":"r","time_ms":1,"colour":"red"}\n[1]\n{"kind":"party","run_id":"r","time_ms":1}\n\n'
    )
    assert spool.read() == [Event(kind="end", run_id="r", time_ms=1)]


def test_bad_events_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='party'"):
        Event(kind="party", run_id="r", time_ms=1)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics(a=float("nan")).to_line()


def test_a_disk_that_takes_half_a_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, write = Spool(tmp_path, "study"), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError, match=r"study\.jsonl: only 10 of \d+ bytes"):
            spool.append(metrics(a=1))
    spool.append(metrics(a=2))
    assert spool.read() == [metrics(a=2)]


@pytest.mark.timeout(60)
def test_two_writers_and_kill_minus_nine_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from backlink_ray.tracking.spool import *\n"
        "spool = Spool(Path(sys.argv[1]), 'study')\n"
        "for i in range(100_000):\n"
        "    spool.append(Event(kind='metrics', run_id=sys.argv[2], time_ms=1, step=i)); print(i, flush=True)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, cwd=ROOT)
        for name in "ab"
    ]
    acknowledged = []
    for writer in writers:
        assert writer.stdout
        for _ in range(40):
            writer.stdout.readline()
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate(timeout=20)[0].split(b"\n")
        acknowledged.append(40 + len(rest) - 1)
    found = {batch[0].run_id: [event.step for event in batch] for batch in by_run(Spool(tmp_path, "study").read())}
    for name, count in zip("ab", acknowledged, strict=True):
        assert found[name] == list(range(len(found[name])))
        assert len(found[name]) >= count


@given(st.one_of(st.text(), st.sampled_from(EVIL)))
def test_a_slug_is_a_safe_file_name(name: str) -> None:
    result = slug(name)
    assert 1 <= len(result.encode()) <= 100
    assert Path(result).name == result
    assert not result.startswith((".", "-"))
    assert result.isascii()
    assert not set(result) & set("/\\%\0 \n'\"`")
    assert slug(result) == result


@given(st.lists(st.text(alphabet="a/\\.%", max_size=4), unique=True))
def test_similar_names_do_not_meet_in_one_slug(names: list[str]) -> None:
    assert len({slug(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["K08-l4-a0.50-e0.30-s0", "backlink-table2-cifar10-resnet110-fc", "a_b=c+d"])
def test_a_good_name_stays(name: str) -> None:
    assert slug(name) == name


@settings(deadline=None)  # the first example imports MLflow
@given(st.one_of(st.text(), st.sampled_from([*EVIL, "a//b", "a@b", "a=b", "a%b", "/a", "a/", "a/../b", "./a"])))
def test_a_key_is_one_that_mlflow_takes(key: str) -> None:
    validation = pytest.importorskip("mlflow.utils.validation")
    result = metric_key(key)
    assert len(result) <= 250
    validation._validate_metric_name(result)
    validation._validate_tag_name(result)
    assert metric_key(result) == result


def test_a_good_key_stays() -> None:
    for key in ("test_error_pct", "local_loss/stage_00", "paper.cell", "curve/test_error_pct"):
        assert metric_key(key) == key


def test_the_ledger_knows_what_changed() -> None:
    start = Event(kind="start", run_id="r", time_ms=1, params={"K": "4"})
    ledger = Ledger([start, metrics(a=1.0, step=2), Event(kind="start", run_id="s", time_ms=1)])
    ledger.check_params("r", {"K": "4", "l": "2"})
    with pytest.raises(ValueError, match=r"run_id='r' already has other parameters \(K: '4' -> '8'\)"):
        ledger.check_params("r", {"K": "8"})
    with pytest.raises(ValueError, match="run_id='q' was never started"):
        ledger.check_known("q")
    assert ledger.new_points("r", {"a": 1.0, "b": 1.0}, 2) == {"b": 1.0}
    assert ledger.new_points("r", {"a": 1.5}, 2) == {"a": 1.5}
    assert ledger.open_runs() == ["r", "s"]
    ledger.note(Event(kind="end", run_id="r", time_ms=3))
    assert ledger.open_runs() == ["s"]


def test_nothing_here_imports_mlflow() -> None:
    rooms = "address, database, journal, record, replay, spool"
    script = f"import sys; from backlink_ray.study import {rooms}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False, cwd=ROOT).returncode == 0
