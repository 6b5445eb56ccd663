"""The cases of the gauntlet: planted faults with the codes that name them, and sound runs, on which nothing may fire.

A fault says for each view of its evidence which codes name it there, any of which will do, or why that evidence can't
show it. What either a checkpoint or a log shows, both show.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from fgclip_doctor.core.config import LOGIT_SCALE_FROM_SCRATCH
from tests.gauntlet.core_runs import CoreRun, scratch, tuned
from tests.gauntlet.trainer_runs import ForkRun, PlainRun, TrainerBase
from tests.gauntlet.views import View

AnyRun = CoreRun | ForkRun | PlainRun


@dataclass(frozen=True)
class Hidden:
    """Why a view can't show a fault."""

    reason: str


Codes = str | Hidden  # codes, separated by spaces

NOT_LOGGED = Hidden("nothing that loops commonly log depends on it")
NOT_SAVED = Hidden("it leaves the weights and the optimizer of a run that merely learns something else")
TOO_SMALL = Hidden("in a model this small, too few matrices are clearly trained to tell what random ones mean")
BRANCH_OFF = Hidden("a scale without a gradient is also that of a branch that is off on purpose")
NO_WEIGHTS = Hidden("a recording holds no large weights")
NOT_SEEN_SAVED = Hidden("what is saved, and loaded again, is seen by `gate`")
OWN_PROCESS = Hidden("a recorder counts the steps of its own process, so nothing says that this is a resume")
BEFORE_SCALING = Hidden("losses are seen where they are computed, which is before they are divided")
STILL_LEARNS = Hidden("the loss falls all the same, to a floor that a harder task could have too")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A run with one thing broken."""

    name: str
    run: AnyRun
    checkpoint: Codes
    log: Codes
    recording: Codes
    both: Codes = ""  # where it is more than what checkpoint and log show by themselves
    base: Codes = ""  # where --base shows more than that

    def expected(self, view: View) -> Codes:
        match view:
            case View.CHECKPOINT:
                return self.checkpoint
            case View.LOG:
                return self.log
            case View.RECORDING:
                return self.recording
            case View.BOTH:
                return self.both or joined(self.checkpoint, self.log)
            case View.BASE:
                return self.base or self.expected(View.BOTH)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A run with nothing wrong."""

    name: str
    run: AnyRun


Case = Fault | Sound


def joined(*seen: Codes) -> Codes:
    codes = [one for one in seen if isinstance(one, str)]
    return " ".join(codes) if codes else seen[0]


BANK = {"roi_projection": True, "use_memory_bank": True, "memory_bank_size": 48, "memory_bank_warmup_steps": 30}
MEAN = {"global_weight": 0.25, "global_short_weight": 0.25, "region_weight": 0.25, "hard_weight": 0.25}
LITTLE = {"learning_rate": 5e-6, "text_learning_rate": 2e-6, "scale_learning_rate": 5e-6}
SHAPED = 1.4e-2  # the learning rate of a base whose weights no longer look random: as after long training
EVEN = 21  # rows that the eight pairs of a forward pass don't divide

FAULTS: tuple[Fault, ...] = (
    # --- the memory bank
    Fault(
        name="bank never enabled",
        run=tuned("bank-never-enabled"),
        checkpoint="FGD201",
        log=Hidden("the region loss is that of a run without a bank"),
        recording="FGD201",
    ),
    Fault(
        name="bank never enabled, width 96",
        run=tuned("bank-never-enabled", width=96, seed=1),
        checkpoint="FGD201",
        log=Hidden("the region loss is that of a run without a bank"),
        recording="FGD201",
    ),
    Fault(
        name="fork: bank never enabled",
        run=ForkRun(recipe={"fault": "bank_off"}),
        checkpoint="FGD201",
        log=Hidden("the region loss is that of a run without a bank"),
        recording="FGD201",
    ),
    Fault(
        name="bank holds noise",
        run=tuned("bank-holds-noise"),
        checkpoint="FGD202 FGD201",
        log=Hidden("negatives of noise cost learnt features as little as a bank of other captions"),
        recording="FGD202 FGD201",
    ),
    Fault(
        name="bank holds noise, bf16 autocast",
        run=tuned("bank-holds-noise", precision="bf16", seed=2),
        checkpoint="FGD202 FGD201",
        log=Hidden("negatives of noise cost learnt features as little as a bank of other captions"),
        recording="FGD202 FGD201",
    ),
    Fault(
        name="bank rows not unit",
        run=tuned("bank-rows-not-unit"),
        checkpoint="FGD204",
        log="FGD505 FGD501 FGD503",
        recording="FGD204",
        both="FGD204",
    ),
    Fault(
        name="bank not saved",
        run=tuned("bank-not-saved"),
        checkpoint="FGD203",
        log=NOT_LOGGED,
        recording=NOT_SEEN_SAVED,
    ),
    Fault(
        name="bank pointer not saved",
        run=tuned("bank-pointer-not-saved"),
        checkpoint="FGD203",
        log=NOT_LOGGED,
        recording=NOT_SEEN_SAVED,
    ),
    Fault(
        name="bank tail dropped",
        run=tuned("bank-tail-dropped", model={"memory_bank_size": EVEN}, micro_batch=4),
        checkpoint="FGD205",
        log=NOT_LOGGED,
        recording="FGD205",
    ),
    Fault(
        name="own captions in the bank are negatives",
        run=tuned("bank-own-captions"),
        checkpoint=Hidden("whether rows with the anchor's caption are masked is no part of the weights"),
        log=STILL_LEARNS,
        recording="FGD206",
        both="FGD206",
    ),
    Fault(
        name="enqueued before the loss",
        run=tuned("bank-enqueued-first"),
        checkpoint=Hidden("when rows were enqueued within a forward pass is no part of the weights"),
        log=STILL_LEARNS,
        recording="FGD206",
        both="FGD206",
    ),
    Fault(
        name="warmup counted in forwards",
        run=tuned("warmup-in-forwards", accumulation=4, micro_batch=4, save_steps=10, max_steps=60),
        checkpoint="FGD401",
        log=Hidden("the loss of learnt features hardly tells when the bank switches on"),
        recording="FGD401",
    ),
    Fault(
        name="fork: warmup counted in forwards",
        run=ForkRun(
            recipe={"fault": "warmup_clock", "bank_warmup": 22, "accumulation": 4, "steps": 60, "save_steps": 10}
        ),
        checkpoint="FGD401",
        log=Hidden("the loss of learnt features hardly tells when the bank switches on"),
        recording="FGD401",
    ),
    Fault(
        name="bank warmup longer than the run",
        run=tuned(model={"memory_bank_warmup_steps": 5000}),
        checkpoint="FGD201 FGD405",
        log=Hidden("the region loss is that of a run without a bank"),
        recording="FGD201 FGD405",
    ),
    Fault(
        name="bank larger than the data",
        run=tuned(
            "bank-own-captions",
            model={"memory_bank_size": 400, "memory_bank_warmup_steps": 0},
            scenes=48,
            micro_batch=8,
        ),
        checkpoint=Hidden("whether rows with the anchor's caption are masked is no part of the weights"),
        log=STILL_LEARNS,
        recording="FGD206",
        both="FGD206",
    ),
    Fault(
        name="fork: bank larger than the data",
        run=ForkRun(recipe={"samples": 120, "bank_warmup": 0}),
        checkpoint="FGD206",
        log=STILL_LEARNS,
        recording="FGD206",
    ),
    Fault(
        name="bank far behind its encoder",
        run=scratch(
            model={**BANK, "memory_bank_size": 1000, "memory_bank_warmup_steps": 0},
            learning_rate=3e-2,
            schedule="constant",
            scenes=2000,
            max_steps=100,
            save_steps=50,
        ),
        checkpoint="FGD207",
        log=STILL_LEARNS,
        recording="FGD207",
    ),
    # --- the scales
    Fault(
        name="scales from scratch over a trained base",
        run=tuned("scale-from-scratch"),
        checkpoint="FGD302",
        log=Hidden("that the run fine-tunes is not in its log"),
        recording=Hidden("that the run fine-tunes shows in its weights alone"),
    ),
    Fault(
        name="fork: scales from scratch over a trained base",
        run=ForkRun(recipe={"fault": "scale", "save_steps": 8}),
        checkpoint="FGD302",
        log=Hidden("no scale is logged"),
        recording=Hidden("that the run fine-tunes shows in its weights alone"),
    ),
    Fault(name="scales of one", run=tuned("scale-of-one"), checkpoint="FGD302", log="FGD302", recording="FGD302"),
    Fault(
        name="scales of one, from scratch",
        run=scratch("scale-of-one", max_steps=60, save_steps=20),
        checkpoint="FGD302",
        log="FGD302",
        recording="FGD302",
    ),
    Fault(
        name="scales above the cap",
        run=tuned("scale-above-cap"),
        checkpoint="FGD301",
        log="FGD301",
        recording="FGD301",
        base="FGD301 FGD302",
    ),
    Fault(
        name="scales saved raw",
        run=tuned("scale-saved-raw"),
        checkpoint="FGD302",
        log=Hidden("the log has the logarithms"),
        recording=NOT_SEEN_SAVED,
    ),
    Fault(
        name="scales reset at a resume",
        run=tuned("scale-reset-at-start", scale=3.0, scale_learning_rate=5e-3, resume_at=45),
        checkpoint=Hidden("at its learning rate a scale can have come as far between the checkpoints by itself"),
        log="FGD305",
        recording=OWN_PROCESS,
    ),
    Fault(
        name="scales decayed",
        run=tuned("scale-decayed", scale_learning_rate=3e-3, scale=LOGIT_SCALE_FROM_SCRATCH),
        checkpoint="FGD108",
        log=NOT_LOGGED,
        recording="FGD108",
    ),
    Fault(
        name="plain: the Trainer decays the scale",
        run=PlainRun(fault="scale_decayed", arguments={"weight_decay": 0.2, "learning_rate": 2e-3}),
        checkpoint="FGD108",
        log=Hidden("no scale is logged"),
        recording="FGD108",
    ),
    Fault(
        name="scale learning rate zero",
        run=tuned(scale_learning_rate=0.0),
        checkpoint="FGD107 FGD303",
        log=Hidden("a scale that stands still may be fixed on purpose"),
        recording="FGD107 FGD303",
    ),
    Fault(
        name="scales collapse on mismatched captions",
        run=tuned("captions-of-others", scale_learning_rate=5e-2, max_steps=170),
        checkpoint="FGD304",
        log="FGD304 FGD501",
        recording="FGD304 FGD501",
    ),
    # --- what is trained
    Fault(
        name="region head detached", run=tuned("head-detached"), checkpoint="FGD103", log=NOT_LOGGED, recording="FGD103"
    ),
    Fault(
        name="region head detached, from scratch",
        run=scratch("head-detached", model=BANK, max_steps=80, save_steps=40),
        checkpoint="FGD103",
        log=NOT_LOGGED,
        recording="FGD103",
    ),
    Fault(
        name="fork: region head detached",
        run=ForkRun(recipe={"fault": "head_detached"}),
        checkpoint="FGD103",
        log=NOT_LOGGED,
        recording="FGD103",
    ),
    Fault(
        name="region head frozen",
        run=tuned("head-frozen"),
        checkpoint="FGD101 FGD102",
        log=NOT_LOGGED,
        recording="FGD101 FGD102",
    ),
    Fault(
        name="region head in no group",
        run=tuned("head-not-in-optimizer"),
        checkpoint="FGD102",
        log=NOT_LOGGED,
        recording="FGD102",
    ),
    Fault(
        name="fork: region head in no group",
        run=ForkRun(recipe={"fault": "head_left_out"}),
        checkpoint="FGD102",
        log=NOT_LOGGED,
        recording="FGD102",
    ),
    Fault(
        name="projections at learning rate zero",
        run=tuned("head-learning-rate-zero"),
        checkpoint="FGD107",
        log=NOT_LOGGED,
        recording="FGD107",
    ),
    Fault(
        name="reentrant checkpointing over frozen embeddings",
        run=tuned("checkpointing-cuts-gradients", max_steps=60, save_steps=30),
        checkpoint="FGD105 FGD103",
        log=NOT_LOGGED,
        recording="FGD105 FGD103",
    ),
    Fault(
        name="left in evaluation mode",
        run=tuned("evaluation-mode", accumulation=2),
        checkpoint="FGD110 FGD201 FGD402",
        log=Hidden("without dropout, the loss is that of a run without a bank"),
        recording="FGD110 FGD201 FGD402",
    ),
    Fault(
        name="plain: optimizer holds an orphan of the head",
        run=PlainRun(fault="head_orphaned"),
        checkpoint="FGD104 FGD103 FGD102",
        log=NOT_LOGGED,
        recording="FGD104 FGD103 FGD102",
    ),
    Fault(
        name="plain: text features detached",
        run=PlainRun(fault="text_detached"),
        checkpoint="FGD103 FGD102",
        log=NOT_LOGGED,
        recording="FGD103 FGD102",
    ),
    Fault(
        name="plain: adapters at learning rate zero",
        run=PlainRun(fault="adapters_at_rate_zero", adapters=True, arguments={"max_steps": 80, "save_steps": 40}),
        checkpoint="FGD104 FGD107",
        log="FGD107",
        recording="FGD104 FGD107",
    ),
    # --- the weights of the base
    Fault(
        name="region head left at its start",
        run=tuned("head-left-at-init", base_rate=SHAPED, learning_rate=1e-4, text_learning_rate=1e-4),
        checkpoint="FGD701 FGD706",
        log=NOT_LOGGED,
        recording=NO_WEIGHTS,
    ),
    Fault(
        name="attention left at its start",
        run=tuned("attention-left-at-init", base_rate=SHAPED, learning_rate=1e-4, text_learning_rate=1e-4),
        checkpoint=TOO_SMALL,
        log=Hidden("the loss starts high and falls, as from scratch"),
        recording=NO_WEIGHTS,
        base="FGD701",
    ),
    Fault(
        name="attention left at its start, little learning",
        run=tuned("attention-left-at-init", base_rate=SHAPED, bank=False, max_steps=170, **LITTLE),
        checkpoint=TOO_SMALL,
        log="FGD501",
        recording="FGD501",
        base="FGD701",
    ),
    Fault(
        name="text projection transposed",
        run=tuned("projection-transposed"),
        checkpoint=Hidden("a matrix and its transpose have the same values, and the other head was trained apart"),
        log=Hidden("the loss starts high and falls, as from scratch"),
        recording=NO_WEIGHTS,
        base="FGD702",
    ),
    Fault(
        name="plain: text projection transposed",
        run=PlainRun(fault="projection_transposed", arguments={"learning_rate": 1e-4}),
        checkpoint=Hidden("a matrix and its transpose have the same values"),
        log=Hidden("the loss starts high and falls, as from scratch"),
        recording=NO_WEIGHTS,
        base="FGD702",
    ),
    Fault(
        name="long positions left at their start",
        run=tuned("positions-left-at-init"),
        checkpoint="FGD705 FGD701",
        log=NOT_LOGGED,
        recording=NO_WEIGHTS,
    ),
    Fault(
        name="trained weights overwritten at a resume",
        run=tuned("trained-weights-overwritten", resume_at=45, learning_rate=1e-3, text_learning_rate=1e-3),
        checkpoint="FGD703",
        log=NOT_LOGGED,
        recording=NO_WEIGHTS,
    ),
    Fault(
        name="activation mismatch",
        run=tuned("activation-mismatch"),
        checkpoint=Hidden("what the base was trained with is not in the run's own files"),
        log=NOT_LOGGED,
        recording=NO_WEIGHTS,
        base="FGD704",
    ),
    # --- what goes into the model
    Fault(
        name="texts pooled at their start",
        run=tuned("texts-pooled-at-start", bank=False, max_steps=170),
        checkpoint="FGD707 FGD103",
        log="FGD501",
        recording="FGD501",
        both="FGD707 FGD103",
    ),
    Fault(
        name="texts pooled at their start, from scratch",
        run=scratch("texts-pooled-at-start"),
        checkpoint="FGD707 FGD103",
        log="FGD501",
        recording="FGD501",
        both="FGD707 FGD103",
    ),
    Fault(
        name="captions of others",
        run=tuned("captions-of-others", bank=False, max_steps=170, **LITTLE),
        checkpoint=NOT_SAVED,
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="captions of others, from scratch",
        run=scratch("captions-of-others", scenes=4096, seed=3),
        checkpoint=NOT_SAVED,
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="plain: captions of others",
        run=PlainRun(fault="captions_of_others", arguments={"learning_rate": 1e-4}),
        checkpoint=NOT_SAVED,
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="half of the captions are one",
        run=tuned("captions-repeated", micro_batch=8),
        checkpoint="FGD206 FGD602",
        log=STILL_LEARNS,
        recording=Hidden(
            "copies of captions among the candidates are those of a small vocabulary in a large batch, too"
        ),
    ),
    Fault(
        name="hard negatives misaligned",
        run=tuned("negatives-misaligned", bank=False, max_steps=170, **LITTLE),
        checkpoint=NOT_SAVED,
        log="FGD501 FGD605",
        recording="FGD501",
    ),
    Fault(
        name="hard negatives removed",
        run=tuned("negatives-removed"),
        checkpoint=BRANCH_OFF,
        log=Hidden("a loss that never ran is not in the log"),
        recording=Hidden("a loss that never ran is not in the recording"),
    ),
    Fault(
        name="boxes of the unflipped image",
        run=tuned("boxes-of-unflipped-image", bank=False, max_steps=170, **LITTLE),
        checkpoint=NOT_SAVED,
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="boxes as sizes",
        run=tuned("boxes-as-sizes", bank=False, max_steps=170, **LITTLE),
        checkpoint=NOT_SAVED,
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="unreadable images are black",
        run=tuned("images-replaced-by-black"),
        checkpoint=NOT_SAVED,
        log=STILL_LEARNS,
        recording=STILL_LEARNS,
    ),
    # --- the loss
    Fault(
        name="loss not divided by the accumulation",
        run=tuned("loss-not-divided", accumulation=4, micro_batch=4),
        checkpoint=Hidden("Adam divides a factor of all gradients out again"),
        log="FGD404",
        recording=BEFORE_SCALING,
    ),
    Fault(
        name="loss divided twice",
        run=tuned("loss-divided-twice", accumulation=4, micro_batch=4),
        checkpoint=Hidden("Adam divides a factor of all gradients out again"),
        log="FGD404",
        recording=BEFORE_SCALING,
    ),
    Fault(
        name="plain: loss not divided by the accumulation",
        run=PlainRun(
            start=None,
            fault="not_divided",
            arguments={"gradient_accumulation_steps": 4, "max_steps": 60, "save_steps": 30},
        ),
        checkpoint=Hidden("Adam divides a factor of all gradients out again"),
        log="FGD404",
        recording=BEFORE_SCALING,
    ),
    Fault(
        name="hard loss constant",
        run=tuned("term-constant"),
        checkpoint=BRANCH_OFF,
        log=Hidden("the features that it is made of learn from the other terms, so it falls with them"),
        recording=Hidden("a loss that no gradient comes from may be a metric"),
        both="FGD507 FGD103",
    ),
    Fault(
        name="terms swallowed",
        run=tuned("terms-swallowed"),
        checkpoint=Hidden("fewer steps of some parameters are also those of an unfreezing"),
        log="FGD507",
        recording=Hidden("a term that wasn't computed may have had no anchors in that batch"),
    ),
    Fault(
        name="NaN hidden",
        run=tuned("nan-hidden", max_steps=40, save_steps=20),
        checkpoint="FGD506",
        log="FGD506",
        recording="FGD506",
    ),
    Fault(
        name="plain: NaN hidden by the Trainer",
        run=PlainRun(start=None, fault="nan", arguments={"max_steps": 80, "save_steps": 40}),
        checkpoint="FGD506",
        log="FGD506",
        recording="FGD506",
    ),
    Fault(
        name="one candidate",
        run=tuned(bank=False, micro_batch=1, accumulation=2, regions_per_scene=1.0),
        checkpoint="FGD601",
        log="FGD601 FGD509",
        recording="FGD601 FGD509",
    ),
    Fault(
        name="plain: one candidate",
        run=PlainRun(arguments={"per_device_train_batch_size": 1, "max_steps": 80, "save_steps": 40}),
        checkpoint="FGD601",
        log="FGD601 FGD509",
        recording="FGD601 FGD509",
    ),
    Fault(
        name="accumulation taken for negatives",
        run=tuned(bank=False, micro_batch=2, accumulation=8, max_steps=40, save_steps=20, regions_per_scene=1.0),
        checkpoint="FGD403 FGD601",
        log="FGD403 FGD601",
        recording="FGD403 FGD601",
    ),
    # --- optimizer, schedule and precision
    Fault(
        name="parameters in bf16",
        run=tuned("pure-bf16", **LITTLE),
        checkpoint="FGD106 FGD303",
        log=Hidden("a scale at its cap rests there anyway"),
        recording="FGD106 FGD303",
    ),
    Fault(
        name="parameters in bf16, from 2.66",
        run=tuned("pure-bf16", scale=LOGIT_SCALE_FROM_SCRATCH, seed=4, **LITTLE),
        checkpoint="FGD106 FGD303",
        log="FGD303",
        recording="FGD106 FGD303",
        both="FGD106",
    ),
    Fault(
        name="plain: parameters in bf16",
        run=PlainRun(fault="pure_bf16", arguments={"learning_rate": 1e-5}),
        checkpoint="FGD106 FGD303",
        log=Hidden("no scale is logged, and the loss of a trained base changes little anyway"),
        recording="FGD106 FGD303",
    ),
    Fault(
        name="parameters in fp16",
        run=tuned("pure-fp16", **LITTLE),
        checkpoint="FGD106 FGD506",
        log=Hidden("a scale at its cap rests there anyway"),
        recording="FGD106 FGD506",
    ),
    Fault(
        name="logits in bf16",
        run=tuned("logits-in-bf16"),
        checkpoint=NOT_SAVED,
        log=Hidden("it changes the loss by less than its noise"),
        recording=Hidden("the type of the logits is not recorded"),
    ),
    Fault(
        name="everything decayed",
        run=tuned("everything-decayed"),
        checkpoint="FGD108",
        log=NOT_LOGGED,
        recording="FGD108",
    ),
    Fault(
        name="learning rates ignored",
        run=tuned("rates-ignored"),
        checkpoint="FGD107",
        log=NOT_LOGGED,
        recording=Hidden("which rates were asked for is not in a loop without arguments"),
    ),
    Fault(
        name="clipping planned, and not done",
        run=tuned("clipping-off", max_grad_norm=0.3),
        checkpoint="FGD109",
        log=Hidden("the logged norm is the one before clipping"),
        recording=Hidden("which threshold was asked for is not in a loop without arguments"),
    ),
    Fault(
        name="clipping off, and spikes",
        run=scratch(max_grad_norm=0.0, learning_rate=3e-2, scale=log(100), micro_batch=4, max_steps=120),
        checkpoint=Hidden("whether gradients had spikes is no part of the weights"),
        log="FGD109 FGD111 FGD505 FGD501",
        recording="FGD109 FGD111 FGD505 FGD501",
    ),
    Fault(
        name="learning rate far too high",
        run=tuned(bank=False, learning_rate=0.3, text_learning_rate=0.3, max_steps=170),
        checkpoint=NOT_SAVED,
        log="FGD501 FGD505",
        recording="FGD501 FGD505",
    ),
    Fault(
        name="learning rate far too low",
        run=scratch(learning_rate=1e-8, seed=5),
        checkpoint=Hidden("weights that did not move are those of any model before its training"),
        log="FGD501",
        recording="FGD501",
    ),
    Fault(
        name="plain: learning rate zero",
        run=PlainRun(start=None, arguments={"learning_rate": 0.0, "max_steps": 160}),
        checkpoint="FGD107",
        log="FGD107 FGD501",
        recording="FGD107 FGD501",
        both="FGD107",
    ),
    Fault(
        name="schedule in micro-batches",
        run=tuned("schedule-in-micro-batches", accumulation=2),
        checkpoint="FGD405",
        log="FGD405",
        recording="FGD405",
    ),
    Fault(
        name="warmup longer than the run",
        run=tuned(warmup_steps=600),
        checkpoint="FGD405",
        log="FGD405",
        recording="FGD405",
    ),
    Fault(
        name="plain: warmup longer than the run",
        run=PlainRun(arguments={"warmup_steps": 1000, "max_steps": 80, "save_steps": 40}),
        checkpoint="FGD405",
        log="FGD405",
        recording="FGD405",
    ),
    Fault(
        name="optimizer not resumed",
        run=tuned("optimizer-not-resumed", resume_at=45),
        checkpoint="FGD406",
        log=NOT_LOGGED,
        recording=OWN_PROCESS,
    ),
    Fault(
        name="plain: optimizer lost before a resume",
        run=PlainRun(fault="optimizer_lost", resume_at=80),
        checkpoint="FGD406",
        log="FGD406",
        recording=OWN_PROCESS,
    ),
    Fault(
        name="schedule not resumed",
        run=tuned("schedule-not-resumed", resume_at=45),
        checkpoint="FGD406 FGD405",
        log="FGD406",
        recording=OWN_PROCESS,
    ),
    # --- between ranks
    Fault(
        name="bank of each rank",
        run=tuned(
            "bank-of-each-rank",
            ranks=2,
            max_steps=40,
            save_steps=40,
            micro_batch=4,
            model={"memory_bank_warmup_steps": 10, "memory_bank_size": 1000},
        ),
        checkpoint="FGD208",
        log=NOT_LOGGED,
        recording="FGD208",
    ),
    Fault(
        name="gathered without gradient",
        run=tuned("gather-without-gradient", ranks=2, max_steps=40, save_steps=40, micro_batch=4),
        checkpoint=NOT_SAVED,
        log=STILL_LEARNS,
        recording="FGD801",
    ),
    Fault(
        name="labels not offset by rank",
        run=tuned("labels-not-offset", ranks=2, max_steps=60, save_steps=60, micro_batch=4, bank=False),
        checkpoint=NOT_SAVED,
        log=Hidden("the mean over ranks, which is logged, hides which of them are right"),
        recording="FGD803",
    ),
    Fault(
        name="negatives of each rank",
        run=tuned("negatives-of-each-rank", ranks=2, max_steps=40, save_steps=40, micro_batch=4, bank=False),
        checkpoint=NOT_SAVED,
        log=STILL_LEARNS,
        recording="FGD804",
        both="FGD804",
    ),
    Fault(
        name="ranks diverge",
        run=tuned("ranks-diverge", ranks=2, max_steps=40, save_steps=40, micro_batch=4),
        checkpoint=Hidden("one rank alone saves"),
        log=STILL_LEARNS,
        recording="FGD802",
    ),
)

RESTARTS = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}}

SOUND: tuple[Sound, ...] = (
    # --- fine-tuned, our core
    *(Sound(name=f"tuned, seed {seed}", run=tuned(seed=seed)) for seed in range(5)),
    *(Sound(name=f"tuned, accumulated, seed {seed}", run=tuned(seed=seed, accumulation=2)) for seed in (10, 11)),
    Sound(name="tuned, accumulated, odd warmup", run=tuned(accumulation=3, model={"memory_bank_warmup_steps": 25})),
    Sound(name="tuned, width 48", run=tuned(width=48, seed=5)),
    Sound(name="tuned, width 96", run=tuned(width=96, seed=6)),
    Sound(name="tuned, from 2.66", run=tuned(scale=LOGIT_SCALE_FROM_SCRATCH, seed=7)),
    Sound(name="tuned, from 2.66, another seed", run=tuned(scale=LOGIT_SCALE_FROM_SCRATCH, seed=8)),
    Sound(name="tuned, bf16 autocast", run=tuned(precision="bf16")),
    Sound(name="tuned, bf16 autocast, from 2.66", run=tuned(precision="bf16", scale=LOGIT_SCALE_FROM_SCRATCH)),
    Sound(name="tuned, no bank", run=tuned(bank=False)),
    Sound(name="tuned, no bank, long", run=tuned(bank=False, max_steps=200, save_steps=50)),
    Sound(name="tuned, bank still filling", run=tuned(model={"memory_bank_size": 4000})),
    Sound(name="tuned, bank on at the end", run=tuned(model={"memory_bank_warmup_steps": 80})),
    Sound(
        name="tuned, bank larger than the data, own captions masked",
        run=tuned(model={"memory_bank_size": 400, "memory_bank_warmup_steps": 0}, scenes=48, micro_batch=8),
    ),
    Sound(name="tuned, bank from the start", run=tuned(model={"memory_bank_warmup_steps": 0})),
    Sound(name="tuned, bank just wrapped", run=tuned(micro_batch=4, model={"memory_bank_size": 64})),
    Sound(name="tuned, bank far smaller than a batch", run=tuned(micro_batch=16, model={"memory_bank_size": 10})),
    Sound(
        name="tuned, bank counted in forwards, as said",
        run=tuned(accumulation=2, model={"memory_bank_clock": "forward", "memory_bank_warmup_steps": 60}),
    ),
    Sound(name="tuned, resumed", run=tuned(resume_at=45)),
    Sound(name="tuned, resumed, bf16", run=tuned(resume_at=45, precision="bf16", seed=9)),
    Sound(name="tuned, constant rate", run=tuned(schedule="constant")),
    Sound(name="tuned, no warmup", run=tuned(warmup_steps=0)),
    Sound(name="tuned, long warmup", run=tuned(warmup_steps=45)),
    Sound(name="tuned, no clipping", run=tuned(max_grad_norm=0.0)),
    Sound(name="tuned, tight clipping", run=tuned(max_grad_norm=0.05)),
    Sound(name="tuned, no decay", run=tuned(weight_decay=0.0)),
    Sound(name="tuned, strong decay", run=tuned(weight_decay=0.3)),
    Sound(name="tuned, Adam as PyTorch has it", run=tuned("optimizer-defaults")),
    Sound(name="tuned, tiny batches", run=tuned(micro_batch=3, accumulation=8, max_steps=60, save_steps=30)),
    Sound(name="tuned, large batches", run=tuned(micro_batch=48, accumulation=1, max_steps=60, save_steps=30)),
    Sound(name="tuned, one region in five images", run=tuned(regions_per_scene=0.2, micro_batch=12)),
    Sound(name="tuned, one rate for all", run=tuned(text_learning_rate=None, scale_learning_rate=None)),
    Sound(name="tuned, layers checkpointed", run=tuned(gradient_checkpointing=True, max_steps=60, save_steps=30)),
    Sound(name="tuned, a few steps", run=tuned(max_steps=12, save_steps=6, accumulation=2)),
    Sound(name="tuned, one step", run=tuned(max_steps=1, save_steps=1)),
    Sound(name="tuned, logged every ten steps", run=tuned(logging_steps=10)),
    Sound(name="tuned, small rates", run=tuned(**LITTLE)),
    Sound(name="tuned, small rates, long, no bank", run=tuned(bank=False, max_steps=170, **LITTLE)),
    Sound(name="tuned, high rates", run=tuned(learning_rate=2e-3, text_learning_rate=2e-3)),
    Sound(name="tuned, no head of its own", run=tuned(model={"roi_projection": False})),
    Sound(name="tuned, on two ranks", run=tuned(ranks=2, max_steps=60, save_steps=30, micro_batch=4)),
    # --- from scratch, our core
    *(Sound(name=f"scratch, seed {seed}", run=scratch(seed=seed)) for seed in range(4)),
    Sound(name="scratch, width 48", run=scratch(width=48)),
    Sound(name="scratch, width 96", run=scratch(width=96, max_steps=120)),
    Sound(name="scratch, bf16 autocast", run=scratch(precision="bf16")),
    Sound(name="scratch, with a bank", run=scratch(model=BANK)),
    Sound(name="scratch, with a bank, seed 1", run=scratch(model=BANK, seed=1)),
    Sound(name="scratch, bank from the start", run=scratch(model={**BANK, "memory_bank_warmup_steps": 0})),
    Sound(name="scratch, whole captions only", run=scratch(model={"region_weight": 0.0, "hard_weight": 0.0})),
    Sound(
        name="scratch, mean of four terms, accumulated four times",
        run=scratch(model=MEAN, accumulation=4, max_steps=60, save_steps=30),
    ),
    Sound(
        name="tuned, mean of four terms, accumulated four times", run=tuned(model=MEAN, accumulation=4, max_steps=60)
    ),
    Sound(name="scratch, resumed", run=scratch(resume_at=85)),
    Sound(name="scratch, large batches", run=scratch(micro_batch=64, max_steps=50, save_steps=25, scenes=512)),
    Sound(name="scratch, tiny batches", run=scratch(micro_batch=4, accumulation=4, max_steps=100, save_steps=50)),
    Sound(name="scratch, its first steps", run=scratch(max_steps=20, save_steps=10)),
    # --- the fork of FG-CLIP in the real trainer
    *(Sound(name=f"fork, seed {seed}", run=ForkRun(recipe={"seed": seed})) for seed in range(3)),
    Sound(name="fork, width 48", run=ForkRun(start=TrainerBase(width=48), width=48)),
    Sound(name="fork, bf16 autocast", run=ForkRun(recipe={"bf16": True})),
    Sound(name="fork, label smoothing", run=ForkRun(recipe={"label_smoothing": 0.1})),
    Sound(name="fork, image tower frozen", run=ForkRun(recipe={"frozen": ("clip.vision_model", "clip.visual")})),
    Sound(name="fork, text tower frozen", run=ForkRun(recipe={"frozen": ("clip.text_model", "clip.text_proj")})),
    Sound(name="fork, resumed", run=ForkRun(resume_at=40)),
    Sound(name="fork, cosine with restarts", run=ForkRun(recipe={"schedule": "cosine_with_restarts"})),
    Sound(name="fork, weights alone saved", run=ForkRun(recipe={"save_only_model": True})),
    Sound(name="fork, no clipping", run=ForkRun(recipe={"max_grad_norm": 0.0})),
    Sound(name="fork, bank still filling", run=ForkRun(recipe={"bank_size": 3000})),
    Sound(name="fork, bank from the start", run=ForkRun(recipe={"bank_warmup": 0})),
    Sound(name="fork, data seen five times", run=ForkRun(recipe={"samples": 250, "bank_size": 40})),
    Sound(name="fork, from scratch", run=ForkRun(start=None, recipe={"bank_warmup": 60})),
    Sound(name="fork, large batches", run=ForkRun(recipe={"micro_batch": 48, "accumulation": 1, "steps": 60})),
    Sound(name="fork, tiny batches", run=ForkRun(recipe={"micro_batch": 3, "accumulation": 4, "steps": 80})),
    # --- a plain CLIP in the real trainer
    *(Sound(name=f"plain, seed {seed}", run=PlainRun(seed=seed)) for seed in range(2)),
    Sound(name="plain, from scratch", run=PlainRun(start=None, arguments={"learning_rate": 3e-3})),
    Sound(name="plain, three restarts", run=PlainRun(arguments=RESTARTS)),
    Sound(name="plain, sigmoid loss", run=PlainRun(loss="sigmoid", start=None, arguments={"learning_rate": 3e-3})),
    Sound(name="plain, sigmoid loss, tuned", run=PlainRun(loss="sigmoid")),
    Sound(name="plain, adapters", run=PlainRun(adapters=True, arguments={"learning_rate": 3e-3})),
    Sound(name="plain, adapters, resumed", run=PlainRun(adapters=True, seed=1)),
    Sound(name="plain, image tower frozen", run=PlainRun(frozen=("vision_model", "visual_projection"))),
    Sound(name="plain, towers frozen, heads trained", run=PlainRun(frozen=("vision_model", "text_model"))),
    Sound(name="plain, fixed scale", run=PlainRun(frozen=("logit_scale",))),
    Sound(name="plain, bf16 autocast", run=PlainRun(arguments={"bf16": True})),
    Sound(name="plain, label smoothing", run=PlainRun(label_smoothing=0.1)),
    Sound(name="plain, resumed", run=PlainRun(resume_at=80)),
    Sound(
        name="plain, accumulated",
        run=PlainRun(
            arguments={
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 4,
                "max_steps": 80,
                "save_steps": 40,
            }
        ),
    ),
    Sound(
        name="plain, large batches",
        run=PlainRun(arguments={"per_device_train_batch_size": 128, "max_steps": 40, "save_steps": 20}),
    ),
    Sound(name="plain, batches of four", run=PlainRun(arguments={"per_device_train_batch_size": 4})),
)

CASES: tuple[Case, ...] = (*FAULTS, *SOUND)


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
