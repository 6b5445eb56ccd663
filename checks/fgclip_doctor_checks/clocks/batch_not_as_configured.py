"""FGD408."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD408", "batch-not-as-configured", Severity.WARNING)
def batch_not_as_configured(run: Run) -> Iterator[Finding]:
    """The trainer worked with another batch than the arguments say, and so with other candidates.

    Why: auto_find_batch_size halves the batch when memory runs out, and goes on; started without torchrun on a machine
    with several GPUs, the Trainer wraps the model in DataParallel. Both change how many candidates an anchor has, and
    DataParallel also loses what a forward writes on its replicas, a memory bank for one.
    Evidence: train_batch_size in trainer_state.json beside per_device_train_batch_size in training_args.bin; or the
    Trainer's line in a log, that with DataParallel the batch has been adjusted.
    Benign: the two are the same in every run on one GPU for each process, but for one that was resumed with another
    batch, of which an earlier checkpoint tells (FGD409).
    Fix: set a batch that fits, with gradient checkpointing or accumulation; start with torchrun, or show one GPU only
    (CUDA_VISIBLE_DEVICES=0).
    Sources: transformers.Trainer (find_executable_batch_size, TrainerState.train_batch_size); pytorch/pytorch#2864.
    """
    told = 0
    for checkpoint in reversed(run.checkpoints):
        asked, used = checkpoint.facts.get("micro_batch"), checkpoint.facts.get("batch_in_use")
        if asked is None or used is None or asked.source == used.source:
            continue
        told += 1
        if used.value == asked.value:
            continue
        before = [one.facts["micro_batch"].value for one in run.checkpoints if "micro_batch" in one.facts]
        if used.value in before:
            continue  # the trainer's state keeps the batch of before a resume, of which FGD409 speaks
        times = used.value / asked.value
        halved = "halved when memory ran out, or another before a resume"
        why = f"DataParallel over {times:g} GPUs, or another before a resume" if times == int(times) else halved
        yield Finding(
            message=f"The trainer used batches of {used.value:g}, where {asked.value:g} are configured: {why}.",
            where=used.source.key,
            evidence=(
                Evidence(
                    name="samples a forward",
                    value=used.value,
                    expected=asked.value,
                    why=str(asked.source),
                    source=str(used.source),
                    step=checkpoint.step,
                ),
            ),
        )
        return
    said = run.said("data-parallel")
    if said and not told:
        yield Finding(
            message=f"The Trainer wrapped the model in DataParallel, with {said.names[0]} samples a forward in all: "
            "each GPU has its share alone for candidates, and what a replica writes into a memory bank is lost.",
            where="per_device_train_batch_size",
            evidence=(
                Evidence(
                    name="samples a forward",
                    value=said.names[0],
                    expected=run.number("micro_batch") if "micro_batch" in run.facts else "one process for each GPU",
                    why="per_device_train_batch_size, of a process with one GPU",
                    source=str(said.source),
                ),
            ),
        )
    elif not told:
        raise Missing("no checkpoint says both what batch was configured and what batch was used")
