"""What takes long says how long it may still take."""

import time

import pytest

from backlink_ray.output import told


def test_every_few_seconds_it_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    for _ in told(range(6), "rounds", every_s=10.0):
        clock += 6.0
    assert capsys.readouterr().err.splitlines() == [
        "2 of 6 rounds, about 24 s to go",
        "4 of 6 rounds, about 12 s to go",
    ]


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(told("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
