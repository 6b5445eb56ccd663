from __future__ import annotations

import pytest

from fgclip_doctor.run import FACTS
from fgclip_doctor.sources.facts import LIMITS, SWITCHES, TEXTS, stated, valid
from fgclip_doctor.sources.files import Unreadable


def test_every_fact_is_text_a_switch_or_a_number_with_limits() -> None:
    assert sorted([*TEXTS, *SWITCHES, *LIMITS]) == sorted(FACTS)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accumulation", 8, 8),
        ("accumulation", 0, None),
        ("accumulation", -1, None),
        ("accumulation", 0.5, None),
        ("accumulation", True, None),
        ("accumulation", float("nan"), None),
        ("accumulation", float("inf"), None),
        ("accumulation", 10**300, None),
        ("accumulation", "8", None),
        ("candidates.region", 132, 132),
        ("schedule", "cosine", "cosine"),
        ("schedule", "", None),
        ("bank_clock", "step", "step"),
        ("bank_clock", "sundial", None),
        ("bf16", False, False),
        ("bf16", 1, None),
    ],
)
def test_what_can_state_a_fact(name: str, value: object, expected: object) -> None:
    assert valid(name, value) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("accumulation", "8", 8),
        ("scale", "14.24", 14.24),
        ("bank_enabled", "True", True),
        ("schedule", "cosine", "cosine"),
    ],
)
def test_what_a_user_states(name: str, text: str, expected: object) -> None:
    fact = stated(name, text)
    assert (fact.name, fact.value, str(fact.source)) == (name, expected, f"--fact: {name}")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("acumulation", "8", "--fact: acumulation: there is no such fact; there are micro_batch, "),
        ("scale.region", "8", "there is no such fact"),
        ("accumulation", "nan", "accumulation must be a number from 1 to 1e+06, not 'nan'"),
        ("accumulation", "9" * 5000, "accumulation must be a number"),
        ("bank_enabled", "maybe", "bank_enabled must be true or false, not 'maybe'"),
        ("bank_clock", "sun\x1bdial", "bank_clock must be step or forward, not 'sun\\x1bdial'"),
        ("schedule", "3", "schedule must be text, not '3'"),
    ],
)
def test_nonsense_is_refused_in_words(name: str, text: str, complaint: str) -> None:
    with pytest.raises(Unreadable) as caught:
        stated(name, text)
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()
