"""The built-in checks: one family a folder, one check a file, all of them listed in `CHECKS`."""

from fgclip_doctor import Check
from fgclip_doctor_checks.gradients.parameter_never_got_gradient import parameter_never_got_gradient
from fgclip_doctor_checks.gradients.parameter_not_in_optimizer import parameter_not_in_optimizer

CHECKS: tuple[Check, ...] = (
    parameter_not_in_optimizer,
    parameter_never_got_gradient,
)
