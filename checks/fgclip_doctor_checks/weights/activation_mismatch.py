"""FGD704."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check

QUICK = re.compile(r"(?:^|[/_])openai/clip|metaclip(?![-_]?2)|(?:^|[/_-])dfn\d", re.IGNORECASE)
ALIKE = {
    **dict.fromkeys(("gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_fast"), "gelu"),
    "quickgelu": "quick_gelu",
}


@check("FGD704", "activation-mismatch", Severity.WARNING)
def activation_mismatch(run: Run) -> Iterator[Finding]:
    """The towers run with another activation than the one that their weights were trained with.

    Why: quick_gelu and gelu differ by up to 0.02 at each of thousands of units, in every layer. The weights load
    without a word, and the features are worse from the first step; fine-tuning spends its first steps on repairing
    that.
    Evidence: hidden_act in the run's config.json beside that of the base; without a base, the name that the weights
    were loaded from, where it is of OpenAI's, MetaCLIP's or DFN's models, which were all trained with quick_gelu; or
    open_clip's warning of a QuickGELU mismatch in a log. From weights alone it can't be told.
    Benign: variants of gelu among each other (tanh or not), which differ by under 0.001; a base without a
    configuration.
    Fix: set hidden_act as the base has it, in the configuration of both towers; open_clip's names end in -quickgelu.
    Sources: mlfoundations/open_clip#771; huggingface/pytorch-image-models#1754; Hendrycks & Gimpel 2016 (both forms).
    """
    if warned := run.said("activation"):
        yield Finding(
            message="open_clip warned that the model's activation is not the one that its weights were trained with.",
            where="hidden_act",
            evidence=(
                Evidence(
                    name="quick_gelu of the model",
                    value=(warned.names or ("not as trained",))[0],
                    expected=(warned.names or ("as trained",))[-1],
                    why="what the pretrained tag was trained with, as open_clip says",
                    source=str(warned.source),
                ),
            ),
        )
        return
    fact = run.checkpoint.facts.get("hidden_act") or run.fact("hidden_act")
    base = run.base.facts.get("hidden_act") if run.base else None
    name = run.facts.get("started_from")
    if base is not None:
        wanted, why = str(base.value), str(base.source)
    elif name is not None and QUICK.search(str(name.value)):
        wanted, why = "quick_gelu", f"what {name.value} was trained with ({name.source})"
    else:
        raise Missing("what the weights were trained with isn't known; --base names those that the run started from")
    ours, theirs = (ALIKE.get(one.lower(), one.lower()) for one in (str(fact.value), wanted))
    if ours != theirs:
        yield Finding(
            message=f"The towers run with {fact.value}, and their weights were trained with {wanted}.",
            where=fact.source.key or "hidden_act",
            evidence=(
                Evidence(name="hidden_act", value=str(fact.value), expected=wanted, why=why, source=str(fact.source)),
            ),
        )
