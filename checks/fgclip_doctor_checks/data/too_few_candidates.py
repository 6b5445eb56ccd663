"""FGD601."""

from collections.abc import Iterator
from math import log2

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.recorded import LossSite
from fgclip_doctor.terms import Term, bank_rows, counts, sites, terms
from fgclip_doctor_checks.causes import explaining


@check("FGD601", "too-few-candidates", Severity.INFO)
def too_few_candidates(run: Run, *, least: float = 11) -> Iterator[Finding]:
    """An anchor has so few candidates that there is hardly anything to learn from telling them apart.

    Why: InfoNCE over N candidates can show at most log2 N bits. Random candidates are told apart by any pretrained
    CLIP, so with few of them the loss is small, its gradient is too, and it is noise of which anchors happened to
    meet.
    Evidence: candidates per anchor of each loss in a batch, under `least`: 11, for FG-CLIP asks for one caption of 1 +
    10 of which the others are hard. As recorded, else as logged, else samples per forward times regions per sample (of
    `--data`, or stated) times ranks, and the rows of the bank.
    Benign: trying things out, and small data; a number that is planned. A sigmoid loss has no such bound.
    Fix: more samples per forward, features gathered over ranks, or a memory bank. Accumulation adds no candidates, and
    a lower loss at fewer candidates is no progress.
    Sources: van den Oord et al. 2018, eq. 5 (the bound ln N); Xie et al. 2025 (ten hard negatives);
    sentence-transformers PR 1822, openai/CLIP#83 (one candidate: a loss of 0 always).
    """
    if run.plan.candidates:
        raise Missing("the number of candidates is planned")
    for names, candidates, how, source in _terms(run):
        if candidates >= least:
            continue
        most = log2(max(candidates, 1.0))
        tells = (
            "A softmax over one candidate is 0 and has no gradient" if candidates < 2 else f"{most:.2f} bits at most"
        )
        which, has = f"{', '.join(names)} loss", "has"
        if len(names) > 1:
            which, has = f"{which}es", "have"
        yield Finding(
            message=f"The {which} {has} {candidates:.3g} candidates per anchor ({how}). "
            f"{tells}; one caption among ten hard negatives asks for {log2(11):.2f}.",
            where=f"candidates of the {which}",
            evidence=(
                Evidence(
                    name="candidates per anchor",
                    value=candidates,
                    expected=f"at least {least:g}",
                    why=f"{how}; the {which} can show log2 of it: {most:.2f} bits",
                    source=source,
                ),
            ),
            explained_by=explaining("FGD601"),
        )


def _in_batch(site: LossSite) -> bool:
    """Whether the candidates are those of a batch: of a group of hard negatives the positive's column is constant."""
    return site.kind == "softmax" and site.gradient and site.targets != "constant" and len(site.candidates) > 0


def _terms(run: Run) -> Iterator[tuple[list[str], float, str, str]]:
    """The losses that have their candidates in the batch: how many, how that is known, and from where.

    Those of a recording that have as many are told as one: they are calls on the same features.
    """
    if "loss_kind" in run.facts and run.facts["loss_kind"].value == "sigmoid":
        raise Missing("a sigmoid loss has no bound by its candidates")
    watched = run.watched.first if run.recording else None
    if watched and any(sites(run)):
        import numpy as np

        alike: dict[float, list[str]] = {}
        for site in filter(_in_batch, watched.sites):
            alike.setdefault(float(np.median(site.candidates)), []).append(site.name)
        for candidates, places in alike.items():
            yield places, candidates, "as recorded", watched.path
        return
    found = False
    try:
        logged = [one for one in terms(run) if isinstance(one, Term) and not one.sigmoid and one.name != "hard"]
    except Missing:
        logged = []
    for term in logged:
        if "regions_per_sample" not in term.assumed:
            found = True
            yield [term.name], term.candidates, term.counted, str(term.series.source)
    if found:
        return
    names = ["global", *(["region"] if "regions_per_sample" in run.facts else [])]
    for name in names:
        _, inside, how, _ = counts(run, name)
        rows = bank_rows(run, name)
        yield [name], inside + rows, how + (f", and {rows} rows of the bank" if rows else ""), how
