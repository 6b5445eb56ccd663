"""FGD501: a loss that says nothing was learnt."""

from collections.abc import Iterator
from math import log2

from fgclip_doctor import Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.chance import Reading, acquitted, before_its_bank, grounds, read, supervised
from fgclip_doctor.terms import Term, terms
from fgclip_doctor_checks.causes import explaining


@check("FGD501", "loss-at-chance", Severity.ERROR)
def loss_at_chance(
    run: Run, *, bits: float = 0.25, early: int = 50, points: int = 10, span: int = 30
) -> Iterator[Finding]:
    """A contrastive loss term sits where features that know nothing of each other put it.

    Why: A loss means nothing without its candidates and its scale. Unaligned features never get under ln N. Spread
        evenly they sit at the null level, which at scale 100 is far over it; in a cone, as pretrained features are,
        between the two; with a sampling noise that goes with the level. Collapsed ones, all logits equal, sit at ln N
        with hardly any. Far over the null level, images know captions, but those of others. A sigmoid loss without
        knowledge comes down to N H(1/N), about ln N + 1.
    Evidence: A log. The mean of its last half, after `early` steps, the warmup and 5 % of the run, with at least
        `points` values over `span` steps, or half as many where the null noise is known. At chance is a term that isn't
        under ln N by two errors (which autocorrelation widens, and which have to be under `bits`, or a tenth of log2 N,
        unless it is over by four), that doesn't fall, and whose spread is that of unaligned features at that level, or
        none. A logged margin or accuracy over chance acquits it. Where the number of ranks isn't known, only a loss
        that has stood still at ln N, or a bank's jump that confirms the candidates, counts.
    Benign: The start of a run. A value that only meets ln N of some other count: where gathered or bank candidates are
        possible, the most that there may be are taken. Totals of several terms, weighted terms; label smoothing at a
        scale at which confident pairs may cost more than ln N.
    Fix: Look first for weights that never loaded and gradients that never arrive, if unaligned. If opposed, pair images
        and captions anew: one side alone was shuffled or sorted. If collapsed, lower the learning rate, and see that
        the target points at the positive. More accumulation or a higher scale cure none of them: on unaligned features
        a higher scale only multiplies the noise.
    Sources: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (log N);
        mlfoundations/open_clip#17 (constantly at 4.8, which is ln 128); HobbitLong/SupContrast#42 (6.920 with 64
        samples, ln 127 / 0.7); fgclip_doctor.theory derives the levels.
    """
    reasons: list[str] = []
    judged = 0
    for term in terms(run):
        if isinstance(term, Missing):
            reasons.append(str(term))
            continue
        try:
            reading = read(run, term, bits=bits, early=early, points=points, span=span)
        except Missing as reason:
            reasons.append(str(reason))
            continue
        judged += 1
        if reading.state and not acquitted(run, term, reading):
            yield _finding(term, reading)
    if not judged:
        raise Missing("; ".join(dict.fromkeys(reasons)))


def _finding(term: Term, reading: Reading) -> Finding:
    views = supervised(term, reading) if term.assumed else None
    chance = views[1] if views else term.chance
    mean, error = reading.mean, reading.error
    bits = theory.learnt_bits(mean, null_level=chance, candidates=term.candidates)
    name = f"ln {term.candidates:.4g}" if not term.sigmoid else f"N H(1/N) for N = {term.candidates:.4g}"
    if views:
        name = f"{views[0]:.3g} / 0.07 times ln {2 * term.candidates - 1:.4g}, chance for 2 N - 1 views,"
    null = term.null if term.scale is not None and not term.sigmoid and not views else None
    means = {
        "unaligned": f"features that know nothing of each other give {chance:.2f}"
        + (f" to {null.level:.2f}" if null else ""),
        "collapsed": f"{name} is {chance:.2f}, with no sampling noise, so all logits are equal",
        "opposed": "features that know nothing of each other give "
        f"{null.level if null else chance:.2f}, so images are drawn to the captions of others",
    }
    steps = f"steps {reading.steps[0]} to {reading.steps[-1]}"
    before = before_its_bank(term)
    throughout = ", as it was before its bank came on," if before else ""
    return Finding(
        message=f"The {term.name} loss is at chance{throughout} ({reading.state}): {mean:.2f} over {steps}, where "
        f"{means[reading.state]}. Usable: {max(bits, 0.0):.2f} +- {2 * error / theory.LN2:.2f} of "
        f"{log2(term.candidates):.1f} bits.",
        where=term.series.name,
        evidence=tuple(grounds(term, reading, name, chance, null, before)),
        explained_by=explaining("FGD501", term.name, reading.state),
    )
