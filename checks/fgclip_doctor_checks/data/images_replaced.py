"""FGD607."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD607", "images-replaced", Severity.WARNING)
def images_replaced(run: Run, *, rate: float = 0.001, fewest: int = 5) -> Iterator[Finding]:
    """Images that could not be read are replaced by blank ones, which are trained on with the captions of others.

    Why: the loader catches the error, gives a black image and keeps the caption. Each is a pair that is wrong, and a
    negative that every other caption is told apart from by its blackness; the run goes on without a word but a line.
    Evidence: lines of a log ("get fail image", or an error together with a black, blank or dummy image in its stead),
    counted over the samples of the run: steps x batch, or the data set's size times its epochs.
    Benign: under `rate` of the samples, or fewer than `fewest`; loaders that take another sample with its own caption.
    Fix: let the loader raise, or drop the sample with its caption; read all images once before the run, and remove what
    can't be read from the annotations.
    Sources: 360CVGroup/FG-CLIP, second version's collator (prints, and makes a black image).
    """
    said = run.said("image-replaced")
    if said is None:
        raise Missing("no line of a log says that an image was replaced")
    samples, why = _samples(run)
    count = len(said.steps)
    if count >= fewest and count > rate * samples:
        yield Finding(
            message=f"{count:,} images could not be read and were replaced, {count / samples:.2%} of the samples: "
            "their captions are trained on with a blank image.",
            where="images",
            evidence=(
                Evidence(
                    name="share of replaced images",
                    value=count / samples,
                    expected=f"under {rate:g}",
                    why=f"{count:,} lines; {why}",
                    source=str(said.source),
                ),
            ),
        )


def _samples(run: Run) -> tuple[float, str]:
    """How many samples the run has seen, at most."""
    steps = max((int(one.steps[-1]) for one in run.series.values() if len(one.steps)), default=0)
    if steps and "micro_batch" in run.facts:
        batch = run.number("micro_batch") * run.number("accumulation", 1.0) * run.number("world_size", 1.0)
        return steps * batch, f"{steps:,} steps of {batch:g} samples"
    size, epochs = run.number("dataset_size"), run.number("num_epochs", 1.0)
    return size * max(epochs, 1.0), f"{size:,.0f} samples, {epochs:g} times"
