"""The silent faults, each planted on purpose. Nothing here is reached unless `TrainConfig.faults` names it.

A fault takes what a run trains and with what, just before the first step, and breaks one thing, in the way in which it
was seen to break in real runs: it changes values, puts a function in the place of one method, or hooks what goes into
the model (the batch) and what comes out of it (the terms of the loss). The first paragraph of its docstring is the
mechanism, and `Seen:` says where; `docs/faults.md` is made of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fgclip_doctor.core import bank as bank_code
from fgclip_doctor.core import losses as loss_code
from fgclip_doctor.core import model as model_code
from fgclip_doctor.core import ranks as rank_code
from fgclip_doctor.core import transformer as transformer_code
from fgclip_doctor.core.bank import MemoryBank, caption_ids
from fgclip_doctor.core.config import LOGIT_SCALE_FROM_SCRATCH
from fgclip_doctor.core.losses import Term
from fgclip_doctor.core.model import Batch, FgclipModel
from fgclip_doctor.core.text import Texts
from fgclip_doctor.core.transformer import ACTIVATIONS, Layer, Mlp
from fgclip_doctor.training.settings import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a run trains, and with what. A checkpoint that it resumes from is yet to be loaded."""

    config: TrainConfig
    model: FgclipModel
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR

    @property
    def bank(self) -> MemoryBank:
        if self.model.bank is None:
            raise ValueError("this fault is one of the memory bank, and the model has none")
        return self.model.bank

    @property
    def region_head(self) -> nn.Linear:
        if self.model.roi_projection is None:
            raise ValueError("this fault is one of roi_projection, and the model has none")
        return self.model.roi_projection


Plant = Callable[[Subject], None]

FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    FAULTS[plant.__name__.replace("_", "-")] = plant
    return plant


def plant(names: Sequence[str], subject: Subject) -> None:
    """Plants faults by name."""
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
        FAULTS[name](subject)


# --- the memory bank -----------------------------------------------------------------------------------------------


@fault
def bank_never_enabled(subject: Subject) -> None:
    """A flag is False at the start, and no code sets it. The rows stay the noise that they were initialised with.

    Seen: lightly `MemoryBankModule.forward(update=False)`
    """
    fill_with_noise(subject.bank)
    replace_method(subject.bank, "is_on", lambda step: False)


@fault
def bank_holds_noise(subject: Subject) -> None:
    """The bank is used from the start, and nothing is ever enqueued.

    Seen: lightly-ai/lightly#968
    """
    fill_with_noise(subject.bank)
    subject.bank.queue_is_full.fill_(True)
    replace_method(subject.bank, "enqueue", lambda image_features, text_features, captions: None)


@fault
def bank_rows_not_unit(subject: Subject) -> None:
    """Features are enqueued before their normalisation.

    Seen: lightly-ai/lightly#1009
    """
    enqueue, length = subject.bank.enqueue, subject.model.config.projection_dim**0.5
    replace_method(
        subject.bank, "enqueue", lambda image, text, captions: enqueue(image * length, text * length, captions)
    )


@fault
def bank_not_saved(subject: Subject) -> None:
    """The rows and the pointer are no part of the state dict; a resumed run starts with an empty bank.

    Seen: lightly-ai/lightly#993
    """
    for name, buffer in list(subject.bank.named_buffers()):
        subject.bank.register_buffer(name, buffer, persistent=False)


@fault
def bank_pointer_not_saved(subject: Subject) -> None:
    """The rows are saved, the pointer and the flag are plain attributes; a resumed run believes a full bank empty.

    Seen: pytorch-metric-learning `CrossBatchMemory.queue_idx`, `has_been_filled`
    """
    for name in ("queue_ptr", "queue_is_full"):
        subject.bank.register_buffer(name, getattr(subject.bank, name), persistent=False)


@fault
def bank_tail_dropped(subject: Subject) -> None:
    """At the end of the ring, what doesn't fit is dropped, and the pointer starts over at 0.

    Seen: lightly `_dequeue_and_enqueue`; the newest rows go in ContrastiveSeg#31
    """
    bank, enqueue = subject.bank, subject.bank.enqueue

    def what_fits(image_features: Tensor, text_features: Tensor, captions: Tensor) -> None:
        room = bank.size - int(bank.queue_ptr)
        enqueue(image_features[:room], text_features[:room], captions[:room])

    replace_method(bank, "enqueue", what_fits)


@fault
def bank_own_captions(subject: Subject) -> None:
    """Rows with the anchor's own caption are negatives, though they are positives.

    Seen: facebookresearch/moco#24, facebookresearch/moco#9
    """
    negatives = subject.bank.negatives
    replace_method(subject.bank, "negatives", lambda captions: negatives(torch.full_like(captions, -1)))


@fault
def bank_enqueued_first(subject: Subject) -> None:
    """The batch joins the bank before its loss, so that every positive is a negative too.

    Seen: msight-tech/research-xbm, whose trainer enqueues before `xbm_loss`
    """
    model, bank = subject.model, subject.bank
    region_term, enqueue = model.region_term, bank.enqueue

    def too_early(region_features: Tensor, caption_features: Tensor, batch: Batch, step: int) -> Term:
        if bank.is_on(step):
            end = model.config.text_config.eos_token_id
            enqueue(region_features, caption_features, caption_ids(batch.text_ids, end)[batch.region_index])
        return region_term(region_features, caption_features, batch, step)

    bank_own_captions(subject)
    replace_method(bank, "enqueue", lambda image_features, text_features, captions: None)
    replace_method(model, "region_term", too_early)


@fault
def bank_of_each_rank(subject: Subject) -> None:
    """Every rank enqueues its own rows alone, and the bank of the first is saved.

    Seen: lightly-ai/lightly#1018, bl0/moco#15, HobbitLong/CMC#5
    """
    ranks_only()
    in_forward(subject.model, bank_code, "row_counts", lambda rows: [rows])


@fault
def warmup_in_forwards(subject: Subject) -> None:
    """The bank's warmup is meant in optimizer steps and compared with a counter of forward passes.

    As where it was seen, nothing says what the warmup is counted in: the clock is gone from the configuration.
    """
    subject.bank.clock = "forward"
    subject.model.config = subject.model.config.with_changes(memory_bank_clock=None)


# --- the scales ----------------------------------------------------------------------------------------------------


@fault
def scale_from_scratch(subject: Subject) -> None:
    """Every scale starts where one that is trained from scratch does, 2.6592, whatever the base had learnt."""
    set_scales(subject.model, LOGIT_SCALE_FROM_SCRATCH)


@fault
def scale_of_one(subject: Subject) -> None:
    """Every scale starts at 1.0, which is the logarithm of nothing meant.

    Seen: huggingface/transformers#13430
    """
    set_scales(subject.model, 1.0)


@fault
def scale_above_cap(subject: Subject) -> None:
    """No scale is clamped, and they start at 5.0.

    Seen: openai/CLIP#530; FG-CLIP clamps none of its three
    """
    replace_method(subject.model, "clamp_scales", lambda: None)
    set_scales(subject.model, 5.0)


@fault
def scale_saved_raw(subject: Subject) -> None:
    """Checkpoints hold the scales themselves under the names of their logarithms.

    Seen: the convention is that of ALBEF, which stores the temperature itself
    """

    def raw(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
        state.update({name: scale.detach().exp() for name, scale in subject.model.logit_scales().items()})

    subject.model.register_state_dict_post_hook(raw)  # type: ignore[no-untyped-call]


@fault
def scale_reset_at_start(subject: Subject) -> None:
    """The two auxiliary scales are set to the image's at every start, after the checkpoint was loaded.

    Seen: FG-CLIP `train_fgclip.py`
    """

    @torch.no_grad()
    def reset() -> None:
        subject.model.logit_scale_finegraind.copy_(subject.model.logit_scale)
        subject.model.logit_scale_hardneg.copy_(subject.model.logit_scale)

    at_every_start(subject.model, reset)


@fault
def scale_decayed(subject: Subject) -> None:
    """The scales are in a group with weight decay.

    Seen: transformers' default groups, Long-CLIP
    """
    for group in subject.optimizer.param_groups:
        if group["name"].startswith("scales"):
            group["weight_decay"] = 0.2


# --- what is trained -----------------------------------------------------------------------------------------------


@fault
def head_detached(subject: Subject) -> None:
    """The region features are cut off from the graph behind their projection.

    Seen: Qwen-VL-Series-Finetune#193, unslothai/unsloth#5039
    """
    subject.region_head.register_forward_hook(lambda module, inputs, output: output.detach())


@fault
def head_frozen(subject: Subject) -> None:
    """The region projection has `requires_grad` off.

    Seen: mlfoundations/open_clip#253, where freezing took the wrong layers
    """
    subject.region_head.requires_grad_(False)
    head_not_in_optimizer(subject)


@fault
def head_not_in_optimizer(subject: Subject) -> None:
    """The region projection is trainable, and no group of the optimizer holds it.

    Seen: sentence-transformers#2881
    """
    head = subject.region_head.weight
    for group in subject.optimizer.param_groups:
        kept = [number for number, parameter in enumerate(group["params"]) if parameter is not head]
        for key in ("params", "param_names"):
            group[key] = [group[key][number] for number in kept]


@fault
def head_learning_rate_zero(subject: Subject) -> None:
    """The projections are in a group whose learning rate is 0."""
    set_rates(subject, 0.0, part="projections")


@fault
def checkpointing_cuts_gradients(subject: Subject) -> None:
    """The embeddings are frozen and layers checkpointed in the reentrant way, so these layers get no gradients.

    Seen: huggingface/transformers#21381, huggingface/transformers#23170, kohya-ss/sd-scripts#91
    """
    model = subject.model
    for module in (model.vision_model.embeddings, model.vision_model.pre_layrnorm, model.text_model.embeddings):
        module.requires_grad_(False)
    model.checkpoint_layers()

    def reentrant(layer: Layer, *inputs: Any, use_reentrant: bool, preserve_rng_state: bool) -> Any:
        return checkpoint(layer, *inputs, use_reentrant=True, preserve_rng_state=preserve_rng_state)

    in_forward(model, transformer_code, "checkpoint", reentrant)


@fault
def evaluation_mode(subject: Subject) -> None:
    """The model is left in evaluation mode, in which it has no bank."""
    subject.model.eval()


# --- the weights of the base ---------------------------------------------------------------------------------------


@fault
def head_left_at_init(subject: Subject) -> None:
    """The region projection is new and random where it should have started as a copy of the image's.

    Seen: FG-CLIP `from_openai=False` with the weights of OpenAI, which leaves the head of long texts random
    """
    nn.init.normal_(subject.region_head.weight, std=subject.region_head.in_features**-0.5)


@fault
@torch.no_grad()
def attention_left_at_init(subject: Subject) -> None:
    """The queries, keys and values of both towers, which OpenAI fuses, were skipped by the loader of the base."""
    fresh = FgclipModel(subject.model.config).state_dict()
    for name, parameter in subject.model.named_parameters():
        if any(f".{part}_proj." in name for part in "qkv"):
            parameter.copy_(fresh[name])


@fault
@torch.no_grad()
def projection_transposed(subject: Subject) -> None:
    """The text projection, which is square, was loaded the other way round."""
    subject.model.text_projection.weight.copy_(subject.model.text_projection.weight.T.clone())


@fault
def positions_left_at_init(subject: Subject) -> None:
    """The positions of long texts beyond those of short ones are new and random where they should be interpolated.

    Seen: mlfoundations/open_clip a87f11e
    """
    embeddings = subject.model.text_model.embeddings
    for table in (embeddings.position_embedding_res, embeddings.position_embedding_ori):
        nn.init.normal_(table.weight[embeddings.keep_len :], std=0.02)


@fault
def trained_weights_overwritten(subject: Subject) -> None:
    """What stretches positions and copies heads for a plain CLIP runs at every start, over trained values too.

    Seen: FG-CLIP `scripts/train.sh`, which passes `--from_openai True` with a base of its own
    """
    model = subject.model

    @torch.no_grad()
    def overwrite() -> None:
        model.text_model.embeddings.stretch()
        model.text_filip_projection.weight.copy_(model.text_projection.weight)

    at_every_start(model, overwrite)


@fault
def activation_mismatch(subject: Subject) -> None:
    """The base was trained with quick_gelu, and its weights go on with gelu.

    Seen: mlfoundations/open_clip#771, huggingface/pytorch-image-models#1754
    """
    model = subject.model
    for module in model.modules():
        if isinstance(module, Mlp):
            module.activation = ACTIVATIONS["gelu"]
    vision, text = (
        replace(tower, hidden_act="gelu") for tower in (model.config.vision_config, model.config.text_config)
    )
    model.config = model.config.with_changes(vision_config=vision, text_config=text)


# --- what goes into the model --------------------------------------------------------------------------------------


@fault
def texts_pooled_at_start(subject: Subject) -> None:
    """No end token is found, so texts are pooled at position 0, where the begin token of all of them stands.

    Seen: huggingface/transformers#24773
    """

    def at_start(texts: Texts) -> Texts:
        return replace(texts, ends=torch.zeros_like(texts.ends))

    on_batch(
        subject.model,
        lambda batch, step: replace(batch, texts=at_start(batch.texts), long_texts=at_start(batch.long_texts)),
    )


@fault
def captions_of_others(subject: Subject) -> None:
    """Every image has the captions of the next one, and every region the caption of the next region.

    Seen: what it looks like from scratch is mlfoundations/open_clip#17, a loss constantly at ln 128
    """

    def shifted(batch: Batch, step: int) -> Batch:
        return replace(
            batch,
            long_texts=replace(batch.long_texts, index=batch.long_texts.index.roll(1)),
            short_index=batch.short_index.roll(1),
            region_index=batch.region_index.roll(1),
        )

    on_batch(subject.model, shifted)


@fault
def captions_repeated(subject: Subject) -> None:
    """Half of the images and regions have one and the same caption, and are each other's negatives.

    Seen: mlfoundations/open_clip#821, fartashf/vsepp#6
    """

    def repeated(index: Tensor) -> Tensor:
        return torch.where(torch.arange(len(index), device=index.device) % 2 == 0, index[:1], index)

    on_batch(
        subject.model,
        lambda batch, step: replace(
            batch, short_index=repeated(batch.short_index), region_index=repeated(batch.region_index)
        ),
    )


@fault
def negatives_misaligned(subject: Subject) -> None:
    """The first region has nine negatives and the last eleven; the texts still reshape to eleven a region.

    So what should be the positive of every later region is its first negative.

    Seen: FG-CLIP `hard_contrastive_loss`
    """

    def misaligned(batch: Batch, step: int) -> Batch:
        texts = batch.hard_index.flatten()  # (H * 11,)
        width = batch.hard_index.shape[1]
        return replace(batch, hard_index=torch.cat([texts[: width - 1], texts[width:], texts[-1:]]).view(-1, width))

    on_batch(subject.model, misaligned)


@fault
def negatives_removed(subject: Subject) -> None:
    """The hard negatives never reach the model, for they are in a column that no argument of it is named after.

    Seen: huggingface/transformers#19599, `remove_unused_columns`
    """
    on_batch(
        subject.model,
        lambda batch, step: replace(batch, hard_box=batch.hard_box[:0], hard_index=batch.hard_index[:0]),
    )


@fault
def boxes_of_unflipped_image(subject: Subject) -> None:
    """Images are flipped, and their boxes are not."""
    on_batch(subject.model, lambda batch, step: replace(batch, pixel_values=batch.pixel_values.flip(-1)))


@fault
def boxes_as_sizes(subject: Subject) -> None:
    """Boxes are corner, width and height, and read as two corners."""
    on_batch(
        subject.model,
        lambda batch, step: replace(
            batch, boxes=torch.cat([batch.boxes[:, :2], batch.boxes[:, 2:] - batch.boxes[:, :2]], dim=1)
        ),
    )


@fault
def images_replaced_by_black(subject: Subject) -> None:
    """An image that could not be read is black, and keeps its captions.

    Seen: FG-CLIP 2, whose collator does so
    """

    def first_is_black(batch: Batch, step: int) -> Batch:
        first = torch.arange(len(batch.pixel_values), device=batch.pixel_values.device) == 0
        return replace(batch, pixel_values=batch.pixel_values.masked_fill(first[:, None, None, None], 0.0))

    on_batch(subject.model, first_is_black)


# --- the loss, and what is logged of it ----------------------------------------------------------------------------


@fault
def loss_not_divided(subject: Subject) -> None:
    """The loss of a micro-batch is not divided by the accumulation.

    Seen: huggingface/transformers#34191, huggingface/transformers#37766
    """
    scale_loss(subject.model, subject.config.accumulation)


@fault
def loss_divided_twice(subject: Subject) -> None:
    """The loss of a micro-batch is divided by the accumulation twice.

    Seen: huggingface/transformers#35438
    """
    scale_loss(subject.model, 1 / subject.config.accumulation)


@fault
def term_constant(subject: Subject) -> None:
    """The hard-negative loss has no gradient, and adds a constant to the total.

    Seen: FG-CLIP, whose forward pass returns the total alone, which hides it
    """

    def constant(terms: dict[str, Term], step: int) -> dict[str, Term]:
        return terms | {"hard": replace(terms["hard"], loss=terms["hard"].loss.detach())}

    on_terms(subject.model, constant)


@fault
def terms_swallowed(subject: Subject) -> None:
    """An exception in the region and hard-negative losses is caught and passed over, in bursts of two steps in four.

    Seen: FG-CLIP 2 `fgclip2.py`, `except: pass`
    """

    def swallowed(terms: dict[str, Term], step: int) -> dict[str, Term]:
        return terms if step % 4 < 2 else {name: term for name, term in terms.items() if name.startswith("global")}

    on_terms(subject.model, swallowed)


@fault
def nan_hidden(subject: Subject) -> None:
    """From the fourth step on a padded box gives NaN, for features are divided by their norm, and the log says 0.

    Seen: huggingface/trl#6702; `logging_nan_inf_filter` is on by default
    """
    in_forward(subject.model, model_code, "unit", lambda features: features / features.norm(dim=-1, keepdim=True))

    def padded(batch: Batch, step: int) -> Batch:
        return batch if step < 3 else replace(batch, boxes=batch.boxes * 0)

    def filtered(terms: dict[str, Term], step: int) -> dict[str, Term]:
        return {
            name: replace(term, loss=term.loss.nan_to_num(0.0), margin=term.margin.nan_to_num(0.0))
            for name, term in terms.items()
        }

    on_batch(subject.model, padded)
    on_terms(subject.model, filtered)


# --- optimizer, schedule and precision -----------------------------------------------------------------------------


@fault
def pure_bf16(subject: Subject) -> None:
    """The parameters themselves are bfloat16, so that updates under half an ulp are lost.

    Seen: FG-CLIP without DeepSpeed, huggingface/transformers#21312
    """
    subject.model.to(torch.bfloat16)


@fault
def pure_fp16(subject: Subject) -> None:
    """The parameters themselves are float16, in which Adam's second moments underflow.

    Seen: openai/CLIP#40, openai/CLIP#57
    """
    subject.model.to(torch.float16)


@fault
def logits_in_bf16(subject: Subject) -> None:
    """Logits are bfloat16, which at a scale of 100 has steps of 0.5, so that near ties are ties.

    Seen: FG-CLIP, which casts region features back to bfloat16 before the loss
    """

    info_nce = loss_code.info_nce

    def rounded(logits: Tensor, targets: Tensor, weight: float) -> Term:
        return info_nce(logits.bfloat16().float(), targets, weight)

    in_forward(subject.model, loss_code, "info_nce", rounded)


@fault
def optimizer_defaults(subject: Subject) -> None:
    """Adam has the constants of PyTorch, not those of CLIP.

    Seen: FG-CLIP `scripts/train.sh`, which passes neither
    """
    for group in subject.optimizer.param_groups:
        group.update(betas=(0.9, 0.999), eps=1e-8)


@fault
def everything_decayed(subject: Subject) -> None:
    """Norms, biases and scales are decayed as the matrices are.

    Seen: Long-CLIP; mlfoundations/open_clip 131f46f
    """
    for group in subject.optimizer.param_groups:
        group["weight_decay"] = subject.config.weight_decay


@fault
def rates_ignored(subject: Subject) -> None:
    """All groups have the learning rate of the vision tower, for no name matches the pattern of another.

    Seen: FG-CLIP `CLIPTrainer.create_optimizer`, which misses the text projections
    """
    set_rates(subject, subject.config.learning_rate)


@fault
def clipping_off(subject: Subject) -> None:
    """The gradients that the optimizer gets are not clipped; the logged norm, taken before, looks the same.

    Seen: axolotl#1381, a DeepSpeed configuration without `gradient_clipping`
    """
    whole: dict[nn.Parameter, Tensor] = {}

    def keep(parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            whole[parameter] = parameter.grad.clone()

    def unclip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, grad in whole.items():
            parameter.grad = grad
        whole.clear()

    for parameter in subject.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]
    subject.optimizer.register_step_pre_hook(unclip)


@fault
def schedule_in_micro_batches(subject: Subject) -> None:
    """The schedule is in optimizer steps, and advances with every micro-batch.

    Seen: Lightning-AI/pytorch-lightning#1476; by the number of ranks in huggingface/transformers#24088
    """
    step = subject.scheduler.step

    def step_often() -> None:
        for _ in range(subject.config.accumulation):
            step()

    replace_method(subject.scheduler, "step", step_often)


@fault
def optimizer_not_resumed(subject: Subject) -> None:
    """A resumed run starts with fresh moments.

    Seen: huggingface/transformers `_load_optimizer_and_scheduler`, where a file is missing
    """
    replace_method(subject.optimizer, "load_state_dict", lambda state: None)


@fault
def schedule_not_resumed(subject: Subject) -> None:
    """A resumed run starts its schedule over, warmup and all.

    Seen: huggingface/transformers `_load_optimizer_and_scheduler`, lightly-train#301
    """
    replace_method(subject.scheduler, "load_state_dict", lambda state: None)


# --- several ranks -------------------------------------------------------------------------------------------------


@fault
def gather_without_gradient(subject: Subject) -> None:
    """What other ranks' losses say of a rank's features is lost, for features are gathered as constants.

    Seen: Long-CLIP ed8ccfb, facebookresearch/SLIP#31, mlfoundations/open_clip#616
    """
    ranks_only()
    in_forward(subject.model, loss_code, "gathered", lambda rows, counts: rank_code.gathered(rows.detach(), counts))


@fault
def labels_not_offset(subject: Subject) -> None:
    """Every rank takes the first columns of the gathered candidates for its own.

    Seen: lightly-ai/lightly#1177, sentence-transformers#3453
    """
    ranks_only()
    in_forward(subject.model, loss_code, "rank", lambda: 0)


@fault
def negatives_of_each_rank(subject: Subject) -> None:
    """Nothing is gathered, so the candidates are those of one rank.

    Seen: openai/CLIP#25
    """
    ranks_only()
    in_forward(subject.model, loss_code, "row_counts", lambda rows: [rows])
    in_forward(subject.model, loss_code, "rank", lambda: 0)


@fault
def ranks_diverge(subject: Subject) -> None:
    """The towers are called around `DistributedDataParallel`, so every rank trains its own.

    Seen: Long-CLIP 4e6f5da, `model.module.encode_image`
    """
    ranks_only()
    bypassed = [name for name, _ in subject.model.named_parameters() if not name.startswith("logit_scale")]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(subject.model, bypassed)  # type: ignore[no-untyped-call]


# --- how they are planted ------------------------------------------------------------------------------------------


def ranks_only() -> None:
    if rank_code.world_size() == 1:
        raise ValueError("this fault is one between ranks, and there is one rank only")


def fill_with_noise(bank: MemoryBank) -> None:
    """Random unit columns, which is what banks are commonly initialised with."""
    for queue in (bank.region_image_queue, bank.region_text_queue):
        queue.copy_(F.normalize(torch.randn_like(queue), dim=0))


@torch.no_grad()
def set_scales(model: FgclipModel, value: float) -> None:
    for scale in model.logit_scales().values():
        scale.fill_(value)


def set_rates(subject: Subject, rate: float, *, part: str = "") -> None:
    """Sets the peak learning rate of the groups whose name begins with `part`."""
    scheduler = subject.scheduler
    for number, (group, factor) in enumerate(zip(subject.optimizer.param_groups, scheduler.lr_lambdas, strict=True)):
        if group["name"].startswith(part):
            scheduler.base_lrs[number] = group["initial_lr"] = rate
            group["lr"] = rate * factor(0)


def scale_loss(model: FgclipModel, factor: float) -> None:
    """Multiplies the weight of every term."""
    on_terms(
        model,
        lambda terms, step: {name: replace(term, weight=term.weight * factor) for name, term in terms.items()},
    )


def at_every_start(model: FgclipModel, change: Callable[[], None]) -> None:
    """Makes a change now, and again when a checkpoint has been loaded."""
    load = model.load_state_dict

    def load_and_change(state: dict[str, Tensor]) -> None:
        load(state)
        change()

    change()
    replace_method(model, "load_state_dict", load_and_change)


def on_batch(model: FgclipModel, change: Callable[[Batch, int], Batch]) -> None:
    """Changes what goes into every forward pass; the number is that of the optimizer steps done."""
    model.register_forward_pre_hook(
        lambda module, args, kwargs: ((change(args[0], kwargs["step"]),), kwargs), with_kwargs=True
    )


def on_terms(model: FgclipModel, change: Callable[[dict[str, Term], int], dict[str, Term]]) -> None:
    """Changes what comes out of every forward pass; the number is that of the optimizer steps done."""
    model.register_forward_hook(lambda module, args, kwargs, terms: change(terms, kwargs["step"]), with_kwargs=True)


def in_forward(model: FgclipModel, module: Any, name: str, function: Callable[..., Any]) -> None:
    """Puts `function` in the place of one that `module` uses, while this model computes its forward pass."""
    forward = model.forward

    def with_function(batch: Batch, *, step: int) -> dict[str, Term]:
        with mock.patch.object(module, name, function):
            return forward(batch, step=step)

    replace_method(model, "forward", with_function)


def replace_method(owner: object, name: str, function: Callable[..., Any]) -> None:
    """Puts `function` in the place of a method of this one object.

    The object gets a class of its own, for what stands in its `__dict__` is saved with a scheduler's state.
    """
    kind = type(owner)
    if not callable(getattr(owner, name)):
        raise TypeError(f"{name} is no method of {kind.__name__}")
    owner.__class__ = type(kind.__name__, (kind,), {name: staticmethod(function)})
