"""What a place of the code is called in a report."""

from __future__ import annotations

import pytest

from fgclip_doctor.recorded import short_names


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["train.py:30 < train.py:47", "loss.py:9 < train.py:47"], ["train.py:30", "loss.py:9"]),
        (  # a function that several losses share says nothing: its callers do
            ["losses.py:44 < losses.py:96", "losses.py:44 < losses.py:96 #2", "losses.py:44 < losses.py:118"],
            ["losses.py:96", "losses.py:96 #2", "losses.py:118"],
        ),
        (  # one line that calls two functions, each of which is called elsewhere, too
            ["a.py:1 < b.py:9", "a.py:2 < b.py:9", "a.py:1 < b.py:8", "a.py:2 < b.py:7"],
            ["a.py:1 < b.py:9", "a.py:2 < b.py:9", "b.py:8", "b.py:7"],
        ),
        (["region", "<string>:1 < train.py:3", "train.py:3"], ["region", "<string>:1 < train.py:3", "train.py:3"]),
    ],
)
def test_a_loss_goes_by_the_line_that_tells_it_from_the_others(places: list[str], expected: list[str]) -> None:
    names = short_names(places)
    assert [names.get(place, place) for place in places] == expected
    assert short_names(reversed(places)) == names
