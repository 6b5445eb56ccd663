"""fgclip-doctor: finds the silent faults of contrastive fine-tuning, and proves them with numbers.

A check needs only what is named here::

    from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check

A training that wants to be recorded needs one of these, which import torch when they are asked for::

    with fgclip_doctor.watching(model, optimizer, "runs/exp7"): ...
    Trainer(..., callbacks=[fgclip_doctor.DoctorCallback()])  # of transformers
    Trainer(..., callbacks=[fgclip_doctor.LightningDoctor()])  # of Lightning
"""

from typing import Any

from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.registry import Cause, Check, check
from fgclip_doctor.run import Missing, Run

__version__ = "0.1.0"

_LIVE = {
    "watching": "fgclip_doctor.live.recorder",
    "DoctorCallback": "fgclip_doctor.live.hf",
    "LightningDoctor": "fgclip_doctor.live.pl",
}

__all__ = [
    "Cause",
    "Check",
    "DoctorCallback",
    "Evidence",
    "Finding",
    "LightningDoctor",
    "Missing",
    "Run",
    "Severity",
    "__version__",
    "check",
    "watching",
]


def __getattr__(name: str) -> Any:
    if name not in _LIVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LIVE[name]), name)
