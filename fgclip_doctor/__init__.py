"""fgclip-doctor: finds the silent faults of contrastive fine-tuning, and proves them with numbers.

A check needs only what is named here::

    from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
"""

from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.registry import Check, check
from fgclip_doctor.run import Missing, Run

__version__ = "0.1.0"

__all__ = ["Check", "Evidence", "Finding", "Missing", "Run", "Severity", "__version__", "check"]
