"""The command `plan`: a table over K for one number of devices, and over devices for several; tests/planning has its numbers."""

import json
import re
from pathlib import Path

import pytest

from backlink_ray.cli import main

SMALL = ["plan", "--network", "resnet14", "--batch-size", "8", "--repeats", "1"]


def test_several_numbers_of_devices_give_a_table_a_picture_and_the_one_that_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "p.json"), "--picture", str(tmp_path / "p.png")]
    assert main([*SMALL, "--devices", "4", "1", "2", "--propagation-length", "0", "1", *files]) == 0
    out = capsys.readouterr().out
    *table, said, command = out.strip().splitlines()
    assert max(map(len, table)) <= 80
    assert [line.split()[1] for line in table if re.match("│ +[0-9]", line)] == ["1", "2", "4"]
    assert "on N devices like a core of this machine; BP on one device" in " ".join(out.split())
    assert re.match(r"(beyond \d devices?|up to 4 devices, the most asked for), twice as many save ", said)
    assert command.startswith("backlink-ray train --network resnet14 ")
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [(row["devices"], row["propagation_length"]) for row in rows[:3]] == [(1, 0), (2, 0), (4, 0)]
    assert all(row["num_modules"] <= row["devices"] for row in rows)
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_devices_that_are_too_small_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--devices", "2", "3", "--memory-gib", "0.0001"]) == 0
    assert (
        "2, 3 devices: no pipeline with at most a stage on each fits into 0.0001 GiB of each\n"
        in capsys.readouterr().out
    )
    assert main([*SMALL, "--devices", "2", "3", "--num-modules", "3"]) == 0
    out = capsys.readouterr().out
    assert "\n2 devices: no pipeline with at most a stage on each fits; the fewest stages are 3\n" in out
    assert "\n3 devices: of those asked for the only number on which a pipeline fits; there " in out
    both = ["--devices", "1", "3", "--num-modules", "3", "--memory-gib", "0.0001"]
    assert main([*SMALL, *both]) == 0
    out = capsys.readouterr().out
    assert "\n1 device: no pipeline with at most a stage on each fits; the fewest stages are 3\n" in out
    assert "\n3 devices: no pipeline with at most a stage on each fits into 0.0001 GiB of each\n" in out
    assert main([*SMALL, "--devices", "2", "0"]) == 2
    assert "devices=(2, 0) is out of range; allowed 1 or more" in capsys.readouterr().err


def test_the_papers_best_times_stand_beside_a_plan_of_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    paper = ["plan", "--network", "resnet110", "--head", "conv", "--batch-size", "2", "--repeats", "1"]
    assert main([*paper, "--num-modules", "2", "--propagation-length", "1", "--devices", "2"]) == 0
    said = [
        "0.77 of BP: paper: GLL at best, V100 (Fig. 9)",
        "0.48 of BP: paper: BackLink at best (GLL 0.47), P100 (Fig. 9)",
    ]
    assert [line for line in capsys.readouterr().out.splitlines() if "paper" in line] == said


@pytest.mark.slow
def test_replicas_and_links_are_planned_and_named_in_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_here: None
) -> None:
    flags = ["--num-modules", "2", "--propagation-length", "1", "--replicas", "2", "--transport", "collective"]
    assert main([*SMALL, *flags, "--json", str(tmp_path / "p.json")]) == 0
    out = capsys.readouterr().out
    assert "at batch 8 on cpu\n" in out
    assert "at batch 4 on cpu\n" in out
    assert re.search(r"a message over collective on one machine: [0-9.]+ ms and [0-9.]+ ms a MiB\n", out)
    assert "│ 2 x 2 │" in out
    command = out.strip().splitlines()[-1]
    assert "--batch-size 8 " in command
    assert command.endswith("--replicas 2 --executor ray --transport collective --output-dir runs/planned")
    assert {row["replicas"] for row in json.loads((tmp_path / "p.json").read_text())} == {2}


def test_replicas_need_devices_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--devices", "2", "4", "--num-modules", "2", "--replicas", "1", "2"]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[1:5] for line in out.splitlines() if re.match("│ +[0-9]", line)]
    assert rows[0][:3] == ["2", "│", "2"]  # not twice two modules


def test_a_folder_is_no_file_for_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "p.png").mkdir()
    assert main([*SMALL, "--picture", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"picture='{folder}' is a folder; give a file")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replicas", "0"], "replicas=(0,) is out of range; allowed 1 or more"),
        (["--replicas", "3"], "a batch of 8 has no replicas=3 equal parts"),
        (["--address", "1.2.3.4:6379"], "address='1.2.3.4:6379' has no meaning with transport='queue'"),
    ],
)
def test_replicas_and_links_that_cannot_be_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *flags]) == 2
    assert said in capsys.readouterr().err
