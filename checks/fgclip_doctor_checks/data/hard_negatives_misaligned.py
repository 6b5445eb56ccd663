"""FGD605."""

from collections.abc import Iterator
from math import log, log2

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.annotations import Annotations
from fgclip_doctor.text_tower import reads_as_clip

CERTAIN = log(1e-9)  # of the probability that a blind rule does so well, over all the rules that are tried
LENGTHS = ("characters", "words")  # in which captions may well differ from negatives that were made of them
CAPITALS = "capital letters"


@check("FGD605", "hard-negatives-misaligned", Severity.WARNING)
def hard_negatives_misaligned(
    run: Run, *, contained: float = 0.02, leak: float = 0.25, length_leak: float = 0.5
) -> Iterator[Finding]:
    """Hard negatives aren't 1 + 10, hold their own caption, or give the answer away by a trifle.

    Why: FG-CLIP's loss reshapes the texts to groups of eleven. A group of ten and one of twelve still fit: every
    caption between them is taken for a negative, and its branch is at chance, ln 11. A caption among its own negatives
    is pushed away. And where capitals, a full stop or length tell the caption, the loss falls without a look at the
    image.
    Evidence: `--data`: groups that don't have ten negatives with a letter or digit in them (under other names than
    FineHARD's: the commonest number); over a share `contained` of a sample that holds its caption; rules such as "the
    longest" that pick the caption in over a share `leak` (by length: `length_leak`), beyond chance (Chernoff's bound).
    Benign: a loader that drops or masks groups of other sizes. CLIP's own tokenizer lower-cases, so capitals tell
    nothing where the checkpoint has CLIP's vocabulary. A caption is a little shorter or longer than what was made of
    it.
    Fix: assert len(negatives) == 10 for each region, or pad and mask; write captions and negatives in the same way
    (case, full stop, blanks); leave out negatives that equal the caption. Judge by held-out hard negatives, not by
    this loss.
    Sources: 360CVGroup/FG-CLIP, hard_contrastive_loss; FG-CLIP 2's loader, which lower-cases the negatives alone.
    """
    data = run.annotations
    groups = data.groups
    if not groups.count:
        raise Missing(f"{data.path} has no hard negatives")
    if groups.misaligned:
        odd = sorted((size for size in groups.sizes if size != groups.expected), key=lambda size: -groups.sizes[size])
        counted = ", ".join(f"{groups.sizes[size]:,} of {size}" for size in odd[:4])
        yield _finding(
            data,
            "sizes",
            f"{groups.misaligned:,} of {groups.count:,} groups don't have {groups.expected} negatives ({counted}): a "
            "reshape to groups of equal size fails on them, or shifts the captions of all that follow.",
            ("groups of another size", groups.misaligned, 0, f"{groups.expected} negatives expected"),
        )
    if groups.contained > contained * groups.judged:
        lost = groups.contained / groups.judged
        yield _finding(
            data,
            "captions among negatives",
            f"{lost:.1%} of {groups.judged:,} groups hold their own caption among the negatives: {lost:.2g} of "
            f"{log2(groups.expected + 1):.2f} bits can't be learnt.",
            (
                "groups that hold their caption",
                round(lost, 4),
                f"at most {contained:.0%}",
                "equal but for case and blanks",
            ),
        )
    told = {name: share for name, share in groups.told.items() if _tells(run, data, name, share, leak, length_leak)}
    if told:
        name = max(told, key=lambda one: told[one])
        case = " to a tokenizer that keeps case" if CAPITALS in name else ""
        yield _finding(
            data,
            "leak",
            f"The text with {name} is the caption in {told[name]:.0%} of {groups.judged:,} groups, where chance is "
            f"{groups.chance:.0%}: the answer is told{case} without the image.",
            *(
                (f"captions with {one}", round(share, 4), round(groups.chance, 4), "ties drawn")
                for one, share in told.items()
            ),
        )


def _tells(run: Run, data: Annotations, name: str, share: float, leak: float, length_leak: float) -> bool:
    """Whether a rule picks out more captions than is tolerable, and than chance would but once in a billion."""
    if CAPITALS in name and reads_as_clip(run):
        return False
    chance, judged = data.groups.chance, data.groups.judged
    if share <= max(chance, length_leak if name.endswith(LENGTHS) else leak):
        return False
    miss = (1 - share) * log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return -judged * (share * log(share / chance) + miss) < CERTAIN


def _finding(data: Annotations, place: str, message: str, *measured: tuple[str, float, float | str, str]) -> Finding:
    return Finding(
        message=message,
        where=f"{data.path}: hard negatives, {place}",
        evidence=tuple(
            Evidence(name=name, value=value, expected=expected, why=why, source=data.path)
            for name, value, expected, why in measured
        ),
    )
