"""The built-in checks: one family a folder, one check a file, all of them listed in `CHECKS`."""

from fgclip_doctor import Check
from fgclip_doctor_checks.banks.bank_holds_noise import bank_holds_noise
from fgclip_doctor_checks.banks.bank_holds_positives import bank_holds_positives
from fgclip_doctor_checks.banks.bank_never_active import bank_never_active
from fgclip_doctor_checks.banks.bank_not_in_checkpoint import bank_not_in_checkpoint
from fgclip_doctor_checks.banks.bank_rank_local import bank_rank_local
from fgclip_doctor_checks.banks.bank_rows_not_unit import bank_rows_not_unit
from fgclip_doctor_checks.banks.bank_stale import bank_stale
from fgclip_doctor_checks.banks.bank_wraparound import bank_wraparound
from fgclip_doctor_checks.banks.momentum_encoder_idle import momentum_encoder_idle
from fgclip_doctor_checks.causes import CAUSES
from fgclip_doctor_checks.clocks.accumulation_adds_no_negatives import accumulation_adds_no_negatives
from fgclip_doctor_checks.clocks.accumulation_loss_scaled import accumulation_loss_scaled
from fgclip_doctor_checks.clocks.arguments_ignored_on_resume import arguments_ignored_on_resume
from fgclip_doctor_checks.clocks.batch_changed_on_resume import batch_changed_on_resume
from fgclip_doctor_checks.clocks.batch_not_as_configured import batch_not_as_configured
from fgclip_doctor_checks.clocks.candidates_not_as_planned import candidates_not_as_planned
from fgclip_doctor_checks.clocks.clock_ratio_wrong import clock_ratio_wrong
from fgclip_doctor_checks.clocks.partial_resume import partial_resume
from fgclip_doctor_checks.clocks.repeat_disagrees import repeat_disagrees
from fgclip_doctor_checks.clocks.resume_starts_over import resume_starts_over
from fgclip_doctor_checks.clocks.schedule_outruns_run import schedule_outruns_run
from fgclip_doctor_checks.clocks.warmup_in_wrong_clock import warmup_in_wrong_clock
from fgclip_doctor_checks.data.box_frame_wrong import box_frame_wrong
from fgclip_doctor_checks.data.caption_unreadable import caption_unreadable
from fgclip_doctor_checks.data.degenerate_regions import degenerate_regions
from fgclip_doctor_checks.data.duplicate_captions import duplicate_captions
from fgclip_doctor_checks.data.hard_negatives_misaligned import hard_negatives_misaligned
from fgclip_doctor_checks.data.images_replaced import images_replaced
from fgclip_doctor_checks.data.too_few_candidates import too_few_candidates
from fgclip_doctor_checks.gradients.checkpointing_blocks_gradient import checkpointing_blocks_gradient
from fgclip_doctor_checks.gradients.eval_mode_in_training import eval_mode_in_training
from fgclip_doctor_checks.gradients.freeze_list_not_kept import freeze_list_not_kept
from fgclip_doctor_checks.gradients.gradient_clipping_off import gradient_clipping_off
from fgclip_doctor_checks.gradients.gradient_spike import gradient_spike
from fgclip_doctor_checks.gradients.learning_rate_group_wrong import learning_rate_group_wrong
from fgclip_doctor_checks.gradients.load_changes_state import load_changes_state
from fgclip_doctor_checks.gradients.parameter_frozen import parameter_frozen
from fgclip_doctor_checks.gradients.parameter_never_got_gradient import parameter_never_got_gradient
from fgclip_doctor_checks.gradients.parameter_not_in_optimizer import parameter_not_in_optimizer
from fgclip_doctor_checks.gradients.parameter_unchanged import parameter_unchanged
from fgclip_doctor_checks.gradients.state_not_saved import state_not_saved
from fgclip_doctor_checks.gradients.steps_skipped import steps_skipped
from fgclip_doctor_checks.gradients.updates_lost_to_rounding import updates_lost_to_rounding
from fgclip_doctor_checks.gradients.weight_decay_on_scale import weight_decay_on_scale
from fgclip_doctor_checks.losses.batch_not_overfitted import batch_not_overfitted
from fgclip_doctor_checks.losses.dead_loss_term import dead_loss_term
from fgclip_doctor_checks.losses.loss_at_chance import loss_at_chance
from fgclip_doctor_checks.losses.loss_diverges import loss_diverges
from fgclip_doctor_checks.losses.loss_noise_is_sampling import loss_noise_is_sampling
from fgclip_doctor_checks.losses.loss_not_finite import loss_not_finite
from fgclip_doctor_checks.losses.loss_oscillates import loss_oscillates
from fgclip_doctor_checks.losses.loss_plateau import loss_plateau
from fgclip_doctor_checks.losses.single_candidate import single_candidate
from fgclip_doctor_checks.losses.yardstick_moved import yardstick_moved
from fgclip_doctor_checks.ranks.gather_without_gradient import gather_without_gradient
from fgclip_doctor_checks.ranks.negatives_local import negatives_local
from fgclip_doctor_checks.ranks.rank_labels_wrong import rank_labels_wrong
from fgclip_doctor_checks.ranks.ranks_diverge import ranks_diverge
from fgclip_doctor_checks.ranks.ranks_see_same_batch import ranks_see_same_batch
from fgclip_doctor_checks.scales.logit_scale_above_cap import logit_scale_above_cap
from fgclip_doctor_checks.scales.logit_scale_collapsing import logit_scale_collapsing
from fgclip_doctor_checks.scales.logit_scale_frozen import logit_scale_frozen
from fgclip_doctor_checks.scales.logit_scale_reset import logit_scale_reset
from fgclip_doctor_checks.scales.logit_scale_wrong_init import logit_scale_wrong_init
from fgclip_doctor_checks.weights.activation_mismatch import activation_mismatch
from fgclip_doctor_checks.weights.gamma_not_loaded import gamma_not_loaded
from fgclip_doctor_checks.weights.head_copy_missing import head_copy_missing
from fgclip_doctor_checks.weights.position_table_wrong import position_table_wrong
from fgclip_doctor_checks.weights.projection_transposed import projection_transposed
from fgclip_doctor_checks.weights.texts_pooled_at_start import texts_pooled_at_start
from fgclip_doctor_checks.weights.weights_empty import weights_empty
from fgclip_doctor_checks.weights.weights_left_at_init import weights_left_at_init
from fgclip_doctor_checks.weights.weights_overwritten_at_start import weights_overwritten_at_start

__all__ = ["CAUSES", "CHECKS"]

CHECKS: tuple[Check, ...] = (
    parameter_frozen,
    parameter_not_in_optimizer,
    parameter_never_got_gradient,
    parameter_unchanged,
    checkpointing_blocks_gradient,
    updates_lost_to_rounding,
    learning_rate_group_wrong,
    weight_decay_on_scale,
    gradient_clipping_off,
    eval_mode_in_training,
    gradient_spike,
    freeze_list_not_kept,
    steps_skipped,
    state_not_saved,
    load_changes_state,
    bank_never_active,
    bank_holds_noise,
    bank_not_in_checkpoint,
    bank_rows_not_unit,
    bank_wraparound,
    bank_holds_positives,
    bank_stale,
    bank_rank_local,
    momentum_encoder_idle,
    logit_scale_above_cap,
    logit_scale_wrong_init,
    logit_scale_frozen,
    logit_scale_collapsing,
    logit_scale_reset,
    warmup_in_wrong_clock,
    clock_ratio_wrong,
    accumulation_adds_no_negatives,
    accumulation_loss_scaled,
    schedule_outruns_run,
    partial_resume,
    batch_not_as_configured,
    batch_changed_on_resume,
    arguments_ignored_on_resume,
    repeat_disagrees,
    resume_starts_over,
    candidates_not_as_planned,
    loss_at_chance,
    yardstick_moved,
    loss_oscillates,
    loss_noise_is_sampling,
    loss_diverges,
    loss_not_finite,
    dead_loss_term,
    loss_plateau,
    single_candidate,
    batch_not_overfitted,
    too_few_candidates,
    duplicate_captions,
    degenerate_regions,
    box_frame_wrong,
    hard_negatives_misaligned,
    caption_unreadable,
    images_replaced,
    weights_left_at_init,
    projection_transposed,
    weights_overwritten_at_start,
    activation_mismatch,
    position_table_wrong,
    head_copy_missing,
    texts_pooled_at_start,
    weights_empty,
    gamma_not_loaded,
    gather_without_gradient,
    ranks_diverge,
    rank_labels_wrong,
    negatives_local,
    ranks_see_same_batch,
)
