"""Which finding explains which: the whole graph of causes, in one place.

A check names its causes with `explaining`; the diagnosis keeps those that were found, and the report leads with what
nothing explains. An edge holds for whatever is found together, unless it asks for one place or for a case that the
symptom's check has to have found on its own evidence.
"""

from fgclip_doctor import Cause

CAUSES: tuple[Cause, ...] = (
    # what holds a parameter still
    Cause("FGD105", "FGD103", "blocks behind frozen inputs get no gradient"),
    Cause("FGD707", "FGD103", "texts that are all alike give the tables of the text tower no gradient"),
    Cause("FGD101", "FGD104", "what is frozen doesn't change"),
    Cause("FGD707", "FGD104", "texts that are all alike leave a loss without a gradient for its scale"),
    Cause("FGD707", "FGD507", "hard negatives that are all alike cost ln 11, whatever is learnt"),
    Cause("FGD102", "FGD104", "what no group holds doesn't change"),
    Cause("FGD103", "FGD104", "what gets no gradient doesn't change"),
    Cause("FGD106", "FGD104", "updates that round to nothing change nothing"),
    Cause("FGD102", "FGD303", "no group holds the scale", case="not-held"),
    Cause("FGD107", "FGD303", "the rate of the scale's group is 0", case="rate-zero"),
    Cause("FGD103", "FGD303", "the scale's state shows no gradient", case="no-gradient"),
    Cause("FGD106", "FGD303", "the largest step is under half an ulp of the stored scale", case="rounding"),
    # what was never learnt, or is there no more
    Cause("FGD706", "FGD701", "a branch head was not copied from the head that it branches off", case="branch"),
    Cause("FGD709", "FGD701", "what isn't found under its name is made anew"),
    Cause("FGD708", "FGD701", "who loads an empty tensor gets a random one"),
    Cause("FGD703", "FGD701", "what is overwritten with new values is random", same_place=True),
    Cause("FGD702", "FGD703", "a transposed matrix is far from what it was", same_place=True),
    Cause("FGD705", "FGD703", "a table that was made anew is far from what it was", same_place=True),
    Cause("FGD708", "FGD703", "an empty tensor is far from what it was", same_place=True),
    # what goes wrong with a scale
    Cause("FGD305", "FGD302", "the scale was set to that value at a start", same_place=True),
    Cause("FGD302", "FGD301", "a raw scale in a log-space parameter is far over the cap", same_place=True),
    Cause("FGD501", "FGD304", "a loss without knowledge is lowest at the softest softmax"),
    Cause("FGD701", "FGD304", "a model with random parts can't tell pairs apart"),
    Cause("FGD702", "FGD304", "features behind a transposed head aren't aligned"),
    # what keeps a bank from its work
    Cause("FGD402", "FGD401", "the counter isn't in the clock that its name or the configuration says"),
    Cause("FGD110", "FGD201", "code that asks for self.training never runs"),
    Cause("FGD201", "FGD202", "rows that nothing was written to are as they were made"),
    Cause("FGD603", "FGD204", "a box of no area gives a zero row"),
    Cause("FGD506", "FGD204", "features that are no numbers leave rows that are none"),
    Cause("FGD602", "FGD206", "captions that repeat in the data repeat in the bank"),
    Cause("FGD805", "FGD206", "what every rank is given joins the bank once for each"),
    Cause("FGD205", "FGD207", "rows that the ring never comes back to grow old", case="still"),
    Cause("FGD208", "FGD207", "a ring that only one rank's rows go round turns too slowly", case="still"),
    Cause("FGD209", "FGD207", "keys of an encoder that is never updated don't follow the trained one", case="moved"),
    Cause("FGD401", "FGD207", "a bank that comes on too early holds rows of features that still move", case="moved"),
    Cause("FGD201", "FGD601", "without its bank a batch has no further candidates"),
    Cause("FGD804", "FGD601", "without a gather a rank has its own batch alone"),
    # why nothing is learnt
    Cause("FGD101", "FGD501", "a part that is frozen can't be aligned"),
    Cause("FGD102", "FGD501", "a part that no group holds can't be aligned"),
    Cause("FGD103", "FGD501", "a part without a gradient can't be aligned"),
    Cause("FGD104", "FGD501", "a part that doesn't change can't be aligned"),
    Cause("FGD105", "FGD501", "blocks without a gradient can't be aligned"),
    Cause("FGD106", "FGD501", "updates that round to nothing teach nothing"),
    Cause("FGD113", "FGD501", "steps that are skipped teach nothing"),
    Cause("FGD107", "FGD501", "a rate of 0 teaches nothing"),
    Cause("FGD405", "FGD501", "a rate that stays near 0 teaches nothing"),
    Cause("FGD701", "FGD501", "features of random parts aren't aligned"),
    Cause("FGD702", "FGD501", "features behind a transposed head aren't aligned"),
    Cause("FGD703", "FGD501", "what had been learnt was overwritten"),
    Cause("FGD707", "FGD501", "texts that are all alike can't be told apart"),
    Cause("FGD802", "FGD501", "ranks that each train another model undo each other's gathered features"),
    Cause("FGD803", "FGD501", "most ranks teach wrong pairs"),
    Cause("FGD604", "FGD501", "regions are pooled from elsewhere than their captions say", case="region"),
    Cause("FGD605", "FGD501", "captions between two misaligned groups are taken for negatives", case="hard"),
    Cause("FGD101", "FGD510", "what is frozen learns no batch"),
    Cause("FGD102", "FGD510", "what no group holds learns no batch"),
    Cause("FGD103", "FGD510", "what gets no gradient learns no batch"),
    Cause("FGD106", "FGD510", "updates that round to nothing learn no batch"),
    Cause("FGD509", "FGD510", "with one candidate there is nothing to learn"),
    Cause("FGD404", "FGD501", "a loss that is multiplied looks as if it lay over its null level", case="opposed"),
    # what a curve shows
    Cause("FGD501", "FGD502", "at chance before and after, so the jump is the yardstick's alone", same_place=True),
    Cause("FGD501", "FGD504", "at chance, so what is seen is the null noise", same_place=True),
    Cause("FGD502", "FGD503", "more candidates raise the level and the noise", same_place=True),
    Cause("FGD502", "FGD505", "more candidates raise the level", same_place=True),
    Cause("FGD107", "FGD503", "a rate that was meant for another part overshoots"),
    Cause("FGD109", "FGD503", "without clipping one batch moves the model too far"),
    Cause("FGD301", "FGD503", "a saturated softmax answers to single pairs"),
    Cause("FGD405", "FGD503", "a rate that never comes down keeps overshooting"),
    Cause("FGD207", "FGD111", "rows of an encoder that is no more pull where none of its own would"),
    Cause("FGD109", "FGD111", "nothing bounds the norm that the optimizer is given"),
    Cause("FGD109", "FGD505", "without clipping one batch throws the run back"),
    Cause("FGD111", "FGD505", "the loss rose after a spike"),
    Cause("FGD203", "FGD505", "a bank that a resume lost makes the loss jump"),
    Cause("FGD301", "FGD505", "nothing bounds the sharpness of the softmax"),
    Cause("FGD204", "FGD505", "rows that aren't unit multiply the logits by their length once the bank is on"),
    Cause("FGD404", "FGD505", "the loss was multiplied by the accumulation"),
    Cause("FGD406", "FGD505", "a resume without Adam's moments or at the peak rate throws the run back"),
    Cause("FGD106", "FGD506", "float16 moments underflow, and Adam divides by eps"),
    Cause("FGD301", "FGD113", "a scale without a cap overflows float16 at any loss scale"),
    Cause("FGD113", "FGD406", "Adam doesn't count the steps that were skipped"),
    Cause("FGD301", "FGD506", "a scale without a cap overflows"),
    Cause("FGD603", "FGD506", "a box of no area gives a zero feature, which divided by its length is NaN"),
    Cause("FGD101", "FGD507", "a term whose parts are all frozen is constant"),
    Cause("FGD501", "FGD507", "a loss over features that are all alike is constant", same_place=True),
    Cause("FGD506", "FGD507", "a term that is NaN drops out of the total"),
    Cause("FGD103", "FGD508", "a part without a gradient has learnt what it can"),
    Cause("FGD107", "FGD508", "a part at the wrong rate stands still"),
    Cause("FGD601", "FGD508", "few candidates leave few bits to gain"),
    Cause("FGD113", "FGD508", "a step that is skipped teaches nothing"),
    Cause("FGD607", "FGD508", "a caption with a blank image can't be learnt"),
    Cause("FGD602", "FGD508", "copies among the candidates set a floor"),
    Cause("FGD509", "FGD103", "a softmax over one candidate has no gradient"),
    Cause("FGD509", "FGD104", "a softmax over one candidate moves nothing"),
    Cause("FGD509", "FGD303", "a softmax over one candidate says nothing of its scale", case="no-gradient"),
    # data and ranks
    Cause("FGD604", "FGD603", "boxes of another frame look inverted or out of the image", case="frame"),
    Cause("FGD802", "FGD803", "features of models that differ don't match across ranks"),
)


def explaining(symptom: str, *cases: str, where: str = "") -> tuple[str, ...]:
    """For `Finding.explained_by`: the codes that would explain `symptom` at `where`, in the `cases` that hold."""
    return tuple(
        f"{edge.code}@{where}" if edge.same_place else edge.code
        for edge in CAUSES
        if edge.symptom == symptom and (not edge.case or edge.case in cases)
    )
