"""FGD510: one batch, again and again, and nothing of it is learnt."""

from collections.abc import Iterator
from math import exp, log, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.events import scales
from fgclip_doctor.recorded import LossSite
from fgclip_doctor.terms import by_step, sites
from fgclip_doctor_checks.causes import explaining

CALLS = 8  # steps, the fewest from which a trend is told


@check("FGD510", "batch-not-overfitted", Severity.ERROR)
def batch_not_overfitted(
    run: Run, *, share: float = 0.05, rates: float = 5e-3, moved: float = 0.05
) -> Iterator[Finding]:
    """The model is given one batch again and again, and doesn't learn even that.

    Why: Any model that is trained learns a batch by heart within some steps. One that doesn't is trained on nothing:
        its features carry no gradient, its targets are new at each step, or another model is updated. Each further
        step is wasted.
    Evidence: A recording in which each call of the model got its first batch (`gate --overfit`): the learnt bits of a
        loss rise, from the first third to the last, by less than a `share` of what was left, even at 3 errors more, and
        without what a scale that grows makes of them.
    Benign: A rate that is nearly 0, as in a long warmup: it isn't judged before the rates add up to `rates` or the
        weights have moved by the share `moved`; give it more --steps. A batch that is known already. A bank, which
        holds the batch itself as negatives. Texts that are alike in the batch.
    Fix: Look for what gets no gradient (FGD101 to FGD105), a detach, targets that are shuffled, and an optimizer that
        was made before the model was wrapped or moved.
    Sources: karpathy.github.io/2019/04/25/recipe (overfit one batch); PyTorch Lightning, `overfit_batches`.
    """
    import numpy as np

    again = run.overfitted
    if again is None:
        raise Missing("no batch was given again; `gate --overfit -- COMMAND` does it")
    clocks = again.watched.first.clocks
    if clocks.get("replayed", 0) < CALLS:
        raise Missing("the model isn't called as a whole, or too rarely, so no batch was given again")
    if (
        not 0.9 <= clocks["replayed"] / max(clocks.get("backwards", 0), 1) <= 1.1
        or clocks.get("evaluations", 0) > CALLS
    ):
        raise Missing("the model is called in pieces, each with a batch of its own")
    rate = again.series.get("learning_rate")
    budget = float(rate.values.sum()) if rate is not None else 0.0
    travelled = max(
        (float(s.values.sum()) for n, s in again.series.items() if n.startswith("update ratio/")), default=0.0
    )
    if budget < rates and travelled < moved:
        raise Missing(f"the learning rates add up to {budget:.2g}, as in a warmup: too little to learn a batch by")
    judged = 0
    for site in sites(again):
        if _has_copies(site, again.watched.first.world_size) or len(set(site.steps.tolist())) < CALLS:
            continue
        judged += 1
        bits = by_step(again, site, (site.null - site.loss) / theory.LN2, "bits").values
        third = len(bits) // 3
        first, last = float(bits[:third].mean()), float(bits[-third:].mean()) / _growth(again)
        noise = float(np.diff(bits).std()) / sqrt(2)  # of a step, whatever the trend
        left = float(site.loss[: max(third, 1)].mean())
        most = last - first + 3 * noise * sqrt(2 / third)
        if most >= share * left / theory.LN2 or left < 0.1 * log(float(site.candidates.mean())):
            continue
        yield Finding(
            message=f"Given one batch for {len(bits)} steps, the loss at {site.name} learnt {last - first:.3f} bits of "
            f"the {left / theory.LN2:.2f} that were left: nothing trained reaches it, and its steps are wasted.",
            where=site.name,
            evidence=(
                Evidence(
                    name="bits learnt of one batch",
                    value=last - first,
                    expected=f"over {share * left / theory.LN2:.3f}",
                    why=f"a share {share:g} of what was left, at learning rates that add up to {budget:.2g}",
                    source=again.watched.first.path,
                ),
            ),
            explained_by=explaining("FGD510"),
        )
    if not judged:
        raise Missing("no contrastive loss without a bank was seen at enough steps")


def _growth(run: Run) -> float:
    """How many times sharper the sharpest scale has become, which multiplies all bits: 1 or more."""
    moves = [series.values[-1] - series.values[0] for series in scales(run) if len(series.values)]
    return exp(max([0.0, *map(float, moves)]))


def _has_copies(site: LossSite, ranks: int) -> bool:
    """Whether candidates are copies of the batch: the rows of a bank, or texts that are alike."""
    import numpy as np

    twins = 0.0 if site.twins is None else float(np.nan_to_num(site.twins).mean())
    beyond = float((site.candidates / site.anchors).max()) > 1.25 * ranks and site.targets != "constant"
    return twins > 0.25 or beyond
