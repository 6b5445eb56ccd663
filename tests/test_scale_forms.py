from __future__ import annotations

from math import log

import numpy as np
import pytest

from fgclip_doctor.provenance import in_log_space
from fgclip_doctor.run import Scale
from fgclip_doctor.scale_forms import form_of, logarithms, too_soft
from fgclip_doctor.terms import scale_of
from tests.runs import checkpoint, run, tensor

FORMS = [
    ("temp", 0.07, "temperature"),  # ALBEF
    ("temp", log(1 / 0.07), "logarithm"),
    ("temp", 14.28, "scale"),
    ("tau", 1.5, "temperature"),
    ("tau", 1.51, "logarithm"),
    ("temperature", log(100), "logarithm"),
    ("temperature", 5.0, "scale"),
    ("log_temp", log(0.07), "log-temperature"),
    ("temp", log(0.07), "log-temperature"),
    ("log_temp", 4.5, "logarithm"),
    ("logit_temperature", 0.07, "temperature"),
    ("logit_scale", 0.07, "logarithm"),  # no name of a temperature: the logarithm of a scale that has collapsed
    ("logit_scale", 6.8, "logarithm"),
    ("logit_scale", 14.28, "scale"),
]


@pytest.mark.parametrize(("name", "value", "form"), FORMS)
def test_the_value_tells_the_form(name: str, value: float, form: str) -> None:
    assert form_of(name, value, limit=6.9) == form
    scale = Scale("scale.global", tensor(name, np.array(value)), value)
    assert in_log_space(scale) is (form == "logarithm" or value == 6.8)


@pytest.mark.parametrize(("name", "value"), [("temp", 0.07), ("temp", log(1 / 0.07)), ("temp", 1 / 0.07)])
def test_a_saved_scale_is_read_by_its_form(name: str, value: float) -> None:
    saved = run(checkpoint({name: np.array(value)}), roles={"scale.global": name})
    assert scale_of(saved, "global")[0] == pytest.approx(1 / 0.07, rel=1e-6)


def test_what_has_no_logarithm_is_not_finite() -> None:
    assert logarithms("temperature", [0.1, 0.0, -1.0]).tolist() == pytest.approx([log(10), np.inf, np.nan], nan_ok=True)
    assert logarithms("log-temperature", [-2.0]).tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "value", "reach", "expected"),
    [
        ("scale", 1.0, 0.1, True),
        ("scale", 1.0, 0.5, False),  # it may have been a temperature of 0.5
        ("log_t", 0.07, 0.1, True),
        ("log_t", 0.07, 0.8, False),
        ("temp", 0.07, 0.1, False),
        ("log_t", 2.3, 0.1, False),
    ],
)
def test_a_start_that_was_too_soft(name: str, value: float, reach: float, *, expected: bool) -> None:
    assert too_soft(value, reach, name) is expected
