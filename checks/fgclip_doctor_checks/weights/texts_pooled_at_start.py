"""FGD707."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, moments
from fgclip_doctor.parts import TEXT, named

POSITIONS = re.compile(r"pos", re.IGNORECASE)
TOKENS = re.compile(r"tok|word|wte", re.IGNORECASE)
SMALLEST = 8  # rows of a table that say anything


@check("FGD707", "texts-pooled-at-start", Severity.ERROR)
def texts_pooled_at_start(run: Run, *, steps: int = 5) -> Iterator[Finding]:
    """Texts are pooled at their first token, which is the same for all of them, so every text has the same features.

    Why: CLIP pools where the end token stands. Where none is found (another id in the configuration, padding with it,
    an added token with a higher id), argmax gives 0: the begin token, which in a causal tower has seen nothing else.
    Evidence: Adam's second moment of the text tower's tables, after `steps` steps: of all tokens one alone ever had a
    gradient, and of all positions the first alone.
    Benign: tokens that don't occur, and positions beyond the longest text, have no gradient in healthy runs, where
    dozens of others do; a tower that sees both ways (BERT's) may pool at its first token.
    Fix: compare eos_token_id in text_config with the tokenizer's, and look at (input_ids == eos_token_id).argmax(-1) of
    one batch: no two texts of different length may have the same.
    Sources: huggingface/transformers#24773 (eos_token_id 2 in the first converted checkpoints).
    """
    optimizer = named(run)
    tables: dict[str, list[tuple[str, int]]] = {"positions": [], "tokens": []}
    alive: dict[str, list[int]] = {"positions": [], "tokens": []}
    for index, names in optimizer.names.items():
        if len(names) != 1 or "emb" not in names[0] or not (TEXT.search(names[0]) or TOKENS.search(names[0])):
            continue
        kind = "positions" if POSITIONS.search(names[0]) else "tokens" if TOKENS.search(names[0]) else ""
        rows = moments.alive_rows(optimizer, index) if kind else None
        if rows is not None and rows.size >= SMALLEST and rows.any():
            tables[kind].append((names[0], rows.size))
            alive[kind] += rows.nonzero()[0].tolist()
    if not (alive["positions"] and alive["tokens"]) or (optimizer.step or 0) < steps:
        raise Missing("no table of tokens and none of positions, with gradients of several steps, is in the optimizer")
    if set(alive["positions"]) == {0} and len(set(alive["tokens"])) == 1:
        (name, size), token = tables["tokens"][0], alive["tokens"][0]
        yield Finding(
            message=f"Of {size:,} tokens only number {token} ever had a gradient, and of the positions only the first: "
            "texts are pooled at their first token, so all of them have the same features, and nothing can be learnt.",
            where=name,
            evidence=(
                Evidence(
                    name="tokens with a gradient",
                    value=1,
                    expected="as many as occur in the captions",
                    why=f"rows of Adam's second moment over 0; of {tables['positions'][0][0]} it is row 0 alone",
                    source=str(optimizer.source),
                    step=run.step,
                ),
            ),
        )
