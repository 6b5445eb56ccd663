"""FGD606."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.text_tower import SHORT, context, reads_as_clip


@check("FGD606", "caption-unreadable", Severity.WARNING)
def caption_unreadable(
    run: Run, *, empty: float = 0.001, foreign: float = 0.01, garbled: float = 0.01, truncated: float = 0.1
) -> Iterator[Finding]:
    """Captions are empty, garbled, too long, or in a script that the tokenizer takes to pieces.

    Why: all empty captions are the same text, and so false negatives of each other. CLIP's vocabulary is of lower-case
    Latin words: of other scripts, and of UTF-8 that was read as Latin-1, only bytes are left, some tokens a letter.
    What stands beyond the context is never read, and two captions that differ only there are one.
    Evidence: `--data`, text by text: neither letter nor digit; most letters not Latin; the marks of a wrong decoding.
    Of a sample, those with more words, digits and marks than tokens fit: a lower bound, for each is one token or more.
    Benign: accents and other Latin letters. Other scripts where the checkpoint's vocabulary isn't CLIP's, or the
    record says `is_cn`. Some long captions lose their last sentence in any data.
    Fix: drop the samples without a caption; read files as UTF-8, and repair what is garbled (ftfy); a multilingual
    text tower for other scripts; 248 tokens (a stretched position table) for long captions, or say what matters first.
    Sources: Radford et al. 2021 (lower-case BPE of 49,152, 76 tokens); Zhang et al. 2024, Long-CLIP (248, of which 20
    kept).
    """
    data = run.annotations
    if not data.texts:
        raise Missing(f"{data.path} has no captions")
    clip = reads_as_clip(run) is not False
    for name, texts in data.texts.items():
        most = context(run) if name == "caption" else SHORT
        kinds = {
            "empty": (texts.empty / texts.count, empty, "no letter, no digit, or no text at all"),
            "garbled": (texts.garbled / texts.count, garbled, "U+FFFD, or UTF-8 read as Latin-1 or cp1252"),
        }
        if clip:
            kinds["in another script than Latin"] = (texts.foreign / texts.count, foreign, "most letters aren't Latin")
            kinds[f"longer than {most} tokens"] = (texts.over[most], truncated, "of a sample; at least so many are")
        for what, (share, allowed, why) in kinds.items():
            if share > allowed:
                yield Finding(
                    message=f"{share:.2%} of {texts.count:,} texts under {name} are {what}.",
                    where=f"{data.path}: {name} {what}",
                    evidence=(
                        Evidence(
                            name=f"{name}: share {what}",
                            value=round(share, 5),
                            expected=f"at most {allowed:.1%}",
                            why=why,
                            source=data.path,
                        ),
                    ),
                )
