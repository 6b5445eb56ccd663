"""Checks of a lab of its own, beside the built-in ones."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Run, Severity, check


@check("LAB001", "scale-too-soft", Severity.WARNING)
def scale_too_soft(run: Run, *, least: float = 2.0) -> Iterator[Finding]:
    """A logit scale is so low that the softmax is nearly uniform.

    Why: under a scale of exp(2) = 7.4, the best of 1,000 captions can't get a tenth of the probability.
    Evidence: the scales of the latest checkpoint, in log space.
    Benign: a sigmoid loss, whose scale starts at ln 10 = 2.3, is just above.
    Fix: start from ln(1 / 0.07), and keep the scale out of weight decay.
    Sources: Radford et al. 2021, section 2.5.
    """
    for scale in run.scales():  # raises Missing in a model without one, and the check is skipped
        if scale.last < least:
            proof = Evidence(
                name=scale.role,
                value=round(scale.last, 4),
                expected=f"at least {least:g}",
                why="in log space",
                source=str(scale.tensor.source),
            )
            yield Finding(message="The scale is too soft.", where=scale.tensor.name, evidence=(proof,))


CHECKS = [scale_too_soft]
