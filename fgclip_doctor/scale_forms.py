"""How a logit scale is kept: as its logarithm, as CLIP does, as a temperature, or as itself.

A name tells little: ALBEF's `temp` is a temperature (0.07), others' is the logarithm of a scale (2.66). Under a name of
that kind the value decides, since the forms hardly overlap where trainings are: temperatures lie from 0.01 to 0.5,
logarithms of scales from 2 to ln 100 = 4.6, scales from 5 to 100, and logarithms of temperatures under 0.
"""

from __future__ import annotations

import re
from math import log
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Form = Literal["logarithm", "temperature", "log-temperature", "scale"]

TEMPERATURE = re.compile(r"temp|tau|^t$", re.IGNORECASE)
LOGARITHM = re.compile(r"log(?!it)", re.IGNORECASE)
BLURRED = 1.5  # a temperature beyond which no two cosines are told apart: a larger value is no temperature
SOFT = log(2), log(5)  # temperatures of 0.5 (SimCLR's highest) and 0.2 (MoCo v3): between them no training starts
LARGEST = log(100) + 0.2  # of the logarithms, with room for what goes a little over CLIP's cap


def form_of(name: str, value: float, *, limit: float) -> Form:
    """How a scale called `name` is kept that was `value` at its first; `limit` is the most that a logarithm may be."""
    if TEMPERATURE.search(name):
        if value < 0:
            return "log-temperature"
        if LOGARITHM.search(name):
            return "logarithm"
        if value <= BLURRED:
            return "temperature"
        limit = LARGEST
    return "logarithm" if value <= limit else "scale"


def logarithms(form: Form, values: ArrayLike) -> NDArray[np.float64]:
    """The natural logarithms of the scales that are kept as `values`; not finite where there is none."""
    import numpy as np

    kept = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(kept) if form in ("scale", "temperature") else kept
    return -logs if form in ("temperature", "log-temperature") else logs


def too_soft(value: float, reach: float, name: str = "") -> bool:
    """Whether a logarithm that is now `value` was too low from the start on, which lies within `reach` of it.

    Under ln 2 it may be a temperature, unless it is called a logarithm.
    """
    surely = LOGARITHM.search(name) is not None
    return (-SOFT[0] if surely else SOFT[0]) < value - reach and value + reach < SOFT[1]
