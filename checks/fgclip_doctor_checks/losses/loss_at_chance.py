"""FGD501: a loss that says nothing was learnt."""

from collections.abc import Iterator
from math import log2, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.terms import Term, falling, settled, terms

CAUSES = ("FGD101", "FGD102", "FGD103", "FGD104", "FGD105", "FGD106", "FGD107", "FGD701", "FGD702", "FGD703")


@check("FGD501", "loss-at-chance", Severity.ERROR)
def loss_at_chance(
    run: Run, *, bits: float = 0.25, early: int = 50, points: int = 10, span: int = 50
) -> Iterator[Finding]:
    """A contrastive loss term sits at the level of features that know nothing of each other.

    Why: A loss means nothing without its candidates and its scale. Unaligned features sit at their null level, with its
        noise, which at scale 100 is far above ln N; collapsed ones, all logits equal, sit at ln N with hardly any.
    Evidence: The mean of the last half of the log, after `early` steps, the warmup and 5 % of the run, with at least
        `points` values over `span` steps; its error, which autocorrelation widens; and the exact null level for the
        candidates, scale and width of the term. At chance is a term whose learnt bits are within `bits` of none (a
        tenth of log2 N for few candidates), by two errors, and that doesn't fall.
    Benign: The start of a run. A value that only meets ln N of some other count: where gathered or bank candidates are
        possible, the most that there may be are taken. Totals of several terms, sigmoid losses, weighted terms.
    Fix: Unaligned: look for weights that never loaded, gradients that never arrive, pairs that don't match. Collapsed:
        a learning rate too high, a scale near 0, a target that doesn't point at the positive.
    Sources: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (log N);
        mlfoundations/open_clip#17 (constantly at 4.8, which is ln 128); fgclip_doctor.theory derives the null level.
    """
    reasons: list[str] = []
    judged = 0
    for term in terms(run):
        if isinstance(term, Missing):
            reasons.append(str(term))
            continue
        steps, values = settled(run, term.series, max(early, term.since))
        steps, values = steps[len(steps) // 2 :], values[len(values) // 2 :]
        if len(values) < points or steps[-1] - steps[0] < span:
            reasons.append(f"the {term.name} loss has too few values after the start")
            continue
        mean, error = theory.mean_with_error(values)
        limit = min(bits, 0.1 * log2(term.candidates)) * theory.LN2
        if 2 * error > limit:
            reasons.append(f"the {term.name} loss is too noisy to tell ({mean:.3f} +- {error:.3f})")
            continue
        judged += 1
        state = _state(term, mean, error, float(values.std()), limit)
        if state and not falling(settled(run, term.series, max(early, term.since))[1]):
            yield _finding(term, state, mean, error, float(values.std()), f"steps {steps[0]} to {steps[-1]}")
    if not judged:
        raise Missing("; ".join(dict.fromkeys(reasons)))


def _state(term: Term, mean: float, error: float, spread: float, limit: float) -> str:
    """Which way the term is at chance; empty if it isn't."""
    quiet = min(0.05, 0.25 * term.noise / sqrt(term.accumulation))  # collapsed features have no sampling noise
    if abs(mean - theory.chance_level(term.candidates)) <= 0.02 + 2 * error and spread <= quiet:
        return "collapsed"
    varying = 1 / sqrt(term.candidates) if term.name == "region" else 0.0  # of ln N, as the regions per image vary
    if abs(mean - term.level) + 2 * error <= limit and spread <= 2 * term.noise + varying:
        return "unaligned"
    return ""


def _finding(term: Term, state: str, mean: float, error: float, spread: float, steps: str) -> Finding:
    chance = theory.chance_level(term.candidates)
    null = chance if state == "collapsed" else term.level
    learnt = theory.learnt_bits(mean, null_level=null, candidates=term.candidates)
    means = {
        "unaligned": f"features that know nothing of each other give {term.level:.2f}",
        "collapsed": f"ln {term.candidates:g} is {chance:.2f}, with no sampling noise, so all logits are equal",
    }
    source = str(term.series.source)
    how = f"{term.counted}; scale {term.scale:.4g} ({term.scale_source}); width {term.dimension}"
    return Finding(
        message=f"The {term.name} loss is at chance ({state}): {mean:.2f} over {steps}, where {means[state]}. Learnt: "
        f"{learnt:.2f} +- {2 * error / theory.LN2:.2f} of {log2(term.candidates):.1f} bits.",
        where=term.series.name,
        evidence=(
            Evidence(name="mean loss", value=mean, expected=f"under {null:.3f}", why=f"+- {error:.3f}", source=source),
            Evidence(name="null level", value=term.level, why=f"exact, for unit features: {how}", source=source),
            Evidence(name="ln N", value=chance, why="every logit equal", source=source),
            Evidence(
                name="spread of the logged values",
                value=spread,
                expected=f"{term.noise / sqrt(term.accumulation):.3f} to {term.noise:.3f} for unaligned features",
                why=f"null noise of {term.anchors:g} anchors, over up to {term.accumulation} forwards a value",
                source=source,
            ),
        ),
        explained_by=CAUSES,
    )
