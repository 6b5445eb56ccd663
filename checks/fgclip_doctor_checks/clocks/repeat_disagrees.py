"""FGD407: the same command, with the same seed, that starts otherwise."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD407", "repeat-disagrees", Severity.WARNING)
def repeat_disagrees(run: Run, *, relative: float = 1e-3) -> Iterator[Finding]:
    """The same command started twice gives other losses at the same forwards, so nothing about it can be repeated.

    Why: With another loss at the first forward, the seed doesn't reach the data, the dropout or the new weights; a
        difference that one changes on purpose can't be told from it.
    Evidence: Two recordings of one command (`gate --repeat`): the first forward at which a loss differs by more than
        the share `relative`.
    Benign: Kernels that add in another order each time, which grow from the last bits: under `relative` in the first
        steps. A command that sets no seed on purpose.
    Fix: Seed Python, numpy, torch and the workers of the loader before the model is made; give the sampler a generator.
    Sources: pytorch.org/docs/stable/notes/randomness.html; pytorch/pytorch#5059 (workers with the same numpy seed).
    """
    if run.repeated is None:
        raise Missing("the command was run once; `gate --repeat` runs it twice")
    sites = {site.name: site for site in run.repeated.first.sites}
    compared = 0
    for site in run.watched.first.sites:
        other = sites.get(site.name)
        if other is None:
            continue
        again = dict(zip(other.forwards.tolist(), other.loss.tolist(), strict=True))
        pairs = [
            (f, a, again[f]) for f, a in zip(site.forwards.tolist(), site.loss.tolist(), strict=True) if f in again
        ]
        compared += len(pairs)
        apart = next((pair for pair in pairs if not abs(pair[1] - pair[2]) <= relative * max(abs(pair[1]), 1e-6)), None)
        if apart is None:
            continue
        forward, here, there = apart
        yield Finding(
            message=f"At forward {forward}, the loss at {site.name} was {here:.6g} and, in a second run of the same "
            f"command, {there:.6g}.",
            where=site.name,
            evidence=(
                Evidence(
                    name=f"loss at forward {forward}",
                    value=here,
                    expected=there,
                    why=f"the same command again; {len(pairs)} forwards were seen in both",
                    source=run.watched.first.path,
                ),
            ),
        )
    if not compared:
        raise Missing("no loss was seen at the same forward of both runs")
