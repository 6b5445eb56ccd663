"""FGD501: a loss that says nothing was learnt."""

from collections.abc import Iterator
from math import log2, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.terms import Term, falling, logged_beside, settled, terms

CAUSES = ("FGD101", "FGD102", "FGD103", "FGD104", "FGD105", "FGD106", "FGD107", "FGD701", "FGD702", "FGD703")


@check("FGD501", "loss-at-chance", Severity.ERROR)
def loss_at_chance(
    run: Run, *, bits: float = 0.25, early: int = 50, points: int = 10, span: int = 50
) -> Iterator[Finding]:
    """A contrastive loss term sits where features that know nothing of each other put it.

    Why: A loss means nothing without its candidates and its scale. Unaligned features never get under ln N. Spread
        evenly they sit at the null level, which at scale 100 is far over it; in a cone, as pretrained features are,
        between the two; with a sampling noise that goes with the level. Collapsed ones, all logits equal, sit at ln N
        with hardly any.
    Evidence: The mean of the last half of the log, after `early` steps, the warmup and 5 % of the run, with at least
        `points` values over `span` steps. At chance is a term that isn't under ln N by two errors (which
        autocorrelation widens, and which have to be under `bits`, or a tenth of log2 N, unless it is over by four),
        that doesn't fall, and whose spread is that of unaligned features at that level, or none. A logged margin or
        accuracy over chance acquits it.
    Benign: The start of a run. A value that only meets ln N of some other count: where gathered or bank candidates are
        possible, the most that there may be are taken. Totals of several terms, sigmoid losses, weighted terms; label
        smoothing, under which confident pairs cost more than ln N at a high scale.
    Fix: Unaligned: look for weights that never loaded, gradients that never arrive, pairs that don't match. Collapsed:
        a learning rate too high, a scale near 0, a target that doesn't point at the positive.
    Sources: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (log N);
        mlfoundations/open_clip#17 (constantly at 4.8, which is ln 128); fgclip_doctor.theory derives the null level.
    """
    if run.number("label_smoothing", 0.0) > 0:
        raise Missing("with label smoothing, a loss over ln N may be that of well-separated pairs")
    reasons: list[str] = []
    judged = 0
    for term in terms(run):
        if isinstance(term, Missing):
            reasons.append(str(term))
            continue
        steps, values = settled(run, term.series, max(early, term.since))
        half = len(steps) // 2
        if len(steps) - half < points or steps[-1] - steps[half] < span:
            reasons.append(f"the {term.name} loss has too few values after the start")
            continue
        mean, error = theory.mean_with_error(values[half:])
        over = mean - 4 * error >= theory.chance_level(term.candidates)  # clearly, however noisy it is
        if not over and 2 * error > min(bits, 0.1 * log2(term.candidates)) * theory.LN2:
            reasons.append(f"the {term.name} loss is too noisy to tell ({mean:.3f} +- {error:.3f})")
            continue
        judged += 1
        spread = float(values[half:].std())
        state = _state(term, mean, error, spread)
        if state and not falling(values) and not _acquitted(run, term, int(steps[half])):
            yield _finding(term, state, mean, error, spread, f"steps {steps[half]} to {steps[-1]}")
    if not judged:
        raise Missing("; ".join(dict.fromkeys(reasons)))


def _state(term: Term, mean: float, error: float, spread: float) -> str:
    """Which way the term is at chance; empty if it isn't."""
    chance = theory.chance_level(term.candidates)
    quiet = min(0.05, 0.25 * term.null.noise / sqrt(term.accumulation))  # collapsed features have no sampling noise
    if abs(mean - chance) <= 0.02 + 2 * error and spread <= quiet:
        return "collapsed"
    null = term.null_with_level(mean) if mean + 2 * error >= chance else None
    if null is None:
        return ""
    varying = 1 / sqrt(term.candidates) if term.name == "region" else 0.0  # of ln N, as the regions per image vary
    return "unaligned" if null.noise / sqrt(term.accumulation) / 3 <= spread <= 2 * null.noise + varying else ""


def _acquitted(run: Run, term: Term, since: int) -> bool:
    """Whether the positives' margin over their rows, or their top-1 share, was logged and is over chance."""
    for kind, chance, least in (
        ("margin", 0.0, 0.25 * theory.LN2),
        ("acc", theory.chance_top1(term.candidates), 0.5 * theory.chance_top1(term.candidates)),
    ):
        log = logged_beside(run, term, kind)
        mean, error = theory.mean_with_error(log.values[log.steps >= since]) if log is not None else (chance, 0.0)
        if mean - chance > max(least, 3 * error):
            return True
    return False


def _finding(term: Term, state: str, mean: float, error: float, spread: float, steps: str) -> Finding:
    chance = theory.chance_level(term.candidates)
    bits = theory.learnt_bits(mean, null_level=chance, candidates=term.candidates)
    means = {
        "unaligned": f"features that know nothing of each other give {chance:.2f} to {term.null.level:.2f}",
        "collapsed": f"ln {term.candidates:.4g} is {chance:.2f}, with no sampling noise, so all logits are equal",
    }
    source = str(term.series.source)
    how = f"{term.counted}; scale {term.scale:.4g} ({term.scale_source}); width {term.dimension}"
    noise = term.null.noise
    return Finding(
        message=f"The {term.name} loss is at chance ({state}): {mean:.2f} over {steps}, where {means[state]}. Usable: "
        f"{bits:.2f} +- {2 * error / theory.LN2:.2f} of {log2(term.candidates):.1f} bits.",
        where=term.series.name,
        evidence=(
            Evidence(
                name="mean loss", value=mean, expected=f"under {chance:.3f}", why=f"+- {error:.2g}", source=source
            ),
            Evidence(name="null level", value=term.null.level, why=f"of evenly spread features: {how}", source=source),
            Evidence(name="ln N", value=chance, why="every logit equal; the least without knowledge", source=source),
            Evidence(
                name="spread of the logged values",
                value=spread,
                expected=f"{noise / sqrt(term.accumulation):.3f} to {noise:.3f} at the null level",
                why=f"null noise of {term.anchors:.3g} anchors, over up to {term.accumulation} forwards a value",
                source=source,
            ),
        ),
        explained_by=CAUSES,
    )
