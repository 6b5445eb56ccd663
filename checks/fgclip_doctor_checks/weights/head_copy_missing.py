"""FGD706."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import ELDER
from fgclip_doctor.provenance import drift, likeness, randomness_of

EASY = 4.0  # standard deviations that the planned learning rates can move a weight: then a random start is a choice


@check("FGD706", "head-copy-missing", Severity.WARNING)
def head_copy_missing(run: Run, *, alike: float = 0.02) -> Iterator[Finding]:
    """A branch head that should start as a copy of the head that it branches off is random instead.

    Why: the region head and the head of long texts start as copies of trained heads, so that their features are aligned
    from the first step. A random one has to learn the alignment anew, at learning rates that are made for fine-tuning.
    Evidence: the first checkpoint that has the head: its values are independent of each other, as random ones are, its
    cosine with the head that it branches off is under `alike` (and what chance gives), and that one is trained.
    Benign: a model that starts from scratch; heads of other shapes; a head that the planned learning rates move by four
    standard deviations, so that a random start is a choice; a head that has long been trained apart.
    Fix: roi_projection.weight.data.copy_(visual_projection.weight), and text_filip_projection from text_projection,
    after the base is loaded, if the base does not have them.
    Sources: 360CVGroup/FG-CLIP, train_fgclip.py, copy_weight() and from_openai.
    """
    judged = 0
    for role, head in run.heads():
        first = next(one for one in run.checkpoints if head.name in one.tensors)
        elder = first.tensors.get(run.roles.get(ELDER.get(role, ""), ""))
        ours = first.tensors[head.name]
        if elder is None or elder.shape != ours.shape:
            continue
        try:
            moved, reach = drift(run, head.name, until=first).typical, drift(run, head.name, planned=True).typical
        except Missing:
            moved = reach = 0.0  # weights alone: what is random was not trained
        look, donor = randomness_of(ours, moved), randomness_of(elder)
        if look is None or donor is None or donor.independent:
            continue
        judged += 1
        cosine = likeness(ours.values(), elder.values())
        if look.independent and abs(cosine) < alike + 6 / ours.size**0.5 and reach < EASY * look.std:
            yield Finding(
                message=f"{ours.name} is random at step {first.step}, and not a copy of {elder.name}: their cosine is "
                f"{cosine:.3f}. The run can move its weights by {reach:.2g}, and they are {look.std:.2g} wide.",
                where=ours.name,
                evidence=(
                    Evidence(
                        name=f"cosine with {elder.name}",
                        value=round(cosine, 4),
                        expected="near 1",
                        why=f"a copy that has moved by {moved:.2g} at most; {look}",
                        source=str(ours.source),
                        step=first.step,
                    ),
                ),
            )
    if not judged:
        raise Missing("no branch head beside a trained one of its shape, or it has moved too far from its start")
