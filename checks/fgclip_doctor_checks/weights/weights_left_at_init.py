"""FGD701."""

from __future__ import annotations

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import ELDER
from fgclip_doctor.provenance import drift, origin
from fgclip_doctor.untrained import NORMAL, left, look, made_anew, untouched_norms
from fgclip_doctor_checks.causes import explaining


@check("FGD701", "weights-left-at-init", Severity.ERROR)
def weights_left_at_init(run: Run, *, structured: float = 0.4, between: float = 0.05) -> Iterator[Finding]:
    """Parts of an otherwise pretrained model are still at their random initialisation.

    Why: a loader written by hand skips what it doesn't know by name (fused attention weights, a last norm, a head), and
    the model starts with those parts random: its features are no longer aligned.
    Evidence: values that are independent of each other, by the spread of row and column norms, kurtosis and the
    largest singular value, in all tensors of one kind or of one block, where most of the others are far from it; norm
    gains and biases exactly at 1 and 0 where others moved. With --base: random, and unlike the base or the donor. From
    a log alone: transformers' list of newly initialized weights, as far as they are a tower's or its projection's and
    the learning rates can't teach them; start-up code may still copy branch heads and long tables.
    Benign: a model trained from scratch, or too little for its weights to show it; adapters; lookup tables; a new
    head that the planned learning rates can teach (at least half its standard deviation), unless it has a donor.
    Fix: print the missing and unexpected keys of load_state_dict; split fused in_proj weights; copy a branch head from
    the head it starts as.
    Sources: Johnstone 2001 (largest eigenvalue of random matrices); Martin & Mahoney 2021 (trained ones differ).
    """
    if not run.checkpoints:
        yield from _told(run)
        return
    try:
        moved = drift(run).typical
    except Missing:
        moved = 0.0  # weights alone: nothing says that they were trained after loading
    else:
        if run.base is None and not origin(run).pretrained:
            return
    looks = look(run, moved)
    for (kind, why), names in left(run, looks, structured=structured, between=between).items():
        tensor, seen = run.tensors[names[0]], looks[names[0]]
        what = f"All {len(names)} of {kind} are" if len(names) > 1 else f"{names[0]} is"
        top = Evidence(
            name="top singular value over the edge of random ones",
            value=seen.edge,
            expected="well over 1",
            why=f"training lifts it: {seen}",
            source=str(tensor.source),
        )
        where = kind if len(names) > 1 else names[0]
        branch = ELDER.keys() & {role for role, head in run.heads() if head.name in names}
        yield Finding(
            message=f"{what} still as initialised, {why}: what they should have learnt before is lost.",
            where=where,
            evidence=(top,),
            explained_by=explaining("FGD701", *("branch",) * bool(branch)),
        )
    for gain in untouched_norms(run):
        spread = Evidence(
            name="spread of the gain",
            value=gain.statistics.std,
            expected="over 0",
            why="it is 1 throughout and its bias 0, where the other norms are not",
            source=str(gain.source),
        )
        yield Finding(
            message=f"{gain.name} is still as initialised: what it should have learnt before is lost.",
            where=gain.name,
            evidence=(spread,),
        )


def _told(run: Run) -> Iterator[Finding]:
    """What transformers says that it had to make anew, of what nothing makes better afterwards."""
    told = made_anew(run)
    if told.names:
        evidence = Evidence(
            name="newly initialized weights of the towers",
            value=len(told.names),
            expected=0,
            why=f"{told.reach:.2g} is all that Adam can move them, and they are about {NORMAL} wide",
            source=str(told.source),
        )
        yield Finding(
            message=f"{len(told.names)} of the towers' weights were not in what the run was loaded from, "
            f"{told.names[0]} the first: they are random, and {told.steps:g} steps at no more than {told.peak:.2g} "
            "can't teach them.",
            where=told.names[0],
            evidence=(evidence,),
            explained_by=explaining("FGD701"),
        )
