"""The training of one attempt, told in order. Start reading here.

A recipe comes in, a folder fills with events, checkpoints and a result. The loop has no callbacks: after each step it
asks whether it is time to evaluate, to save, to end. What decides is pure (``plan``, ``optim``); what is remembered
lies in ``Progress`` and so in every checkpoint. Data order and rates are functions of the step, so a resumed run does
bit for bit what an undisturbed one would have done, on one machine with as many threads.

A stop is looked for everywhere. A step is finished; reading data and measuring are broken off, and what was not
measured is measured first when the run goes on.
"""

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from runyard.flows.blocks import ModelSettings
from runyard.rundir import NO_ROOM, Ending, EventWriter, free_bytes
from runyard.trainer.checkpoints.async_checkpoint import Saver
from runyard.trainer.checkpoints.checkpoint import (
    Saved,
    contents_of,
    needed_bytes,
    prune,
    remove_checkpoints,
    save_checkpoint,
)
from runyard.trainer.data.cache import Hooks
from runyard.trainer.data.encode import epoch_batches
from runyard.trainer.errors import Diverged, OutOfMemory, StopRequested
from runyard.trainer.evaluation.evaluation import evaluate
from runyard.trainer.evaluation.predictions import prune_predictions, write_predictions
from runyard.trainer.plan import Machine, is_due, plan_in_words, with_micro_batch
from runyard.trainer.prepare import Job, Prepared, prepare
from runyard.trainer.steps.memory import format_bytes, is_out_of_memory
from runyard.trainer.steps.optim import rate_factor, set_rates
from runyard.trainer.watchdog import LossWatch, StepWatch, listed

SECONDS_BETWEEN_LINES = 2.0  # on stdout; every step is an event
SAVE_TRIES = 3  # on a disk that fails; one that is full is waited for


@dataclass(frozen=True)
class Outcome:
    """How training ended, and the newest checkpoint."""

    reason: Ending
    message: str
    checkpoint: str | None
    metrics: dict[str, float]


def train(
    job: Job,
    machine: Machine,
    events: EventWriter,
    *,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    free: Callable[[Path], int] = free_bytes,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Train until the plan is done, validation stops improving, or ``should_stop``.

    Raises:
        TrainingFailed: recipe or data are at fault.
    """
    # However the loop ends, the checkpoint that is being written beside it is finished first.
    with Saver(job.folder, events, should_stop=should_stop, say=say, free_bytes=free, sleep=sleep) as saver:
        return _train(job, machine, events, saver, should_stop, say, clock)


def _train(
    job: Job,
    machine: Machine,
    events: EventWriter,
    saver: Saver,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> Outcome:

    def look() -> None:
        if should_stop():
            raise StopRequested

    def preparing(message: str) -> None:
        events.write("phase", phase="Preparing", message=message)

    def warn(message: str) -> None:
        events.write("warning", message=message)
        say(f"warning: {message}")

    preparing(job.beginning)
    try:
        with _memory_is_named(
            "preparing data and model", "dataset.maxSamples, architecture.size, training.mode 'lora'"
        ):
            made = prepare(job, machine, told=Hooks(check_cancelled=look, on_progress=preparing, on_warning=warn))
    except StopRequested:
        return Outcome("Stopped", "stopped while preparing, before another step", None, {})
    plan, progress, settings, seed = made.plan, made.progress, job.recipe.model, job.recipe.settings.seed
    events.write("plan", plan=plan.document)
    say(plan_in_words(plan))
    if made.outlook is not None:
        _heed(made, settings, events, warn)
        plan = made.plan
    if progress.step:
        say(f"going on after step {progress.step}")

    predicted = made.outlook.peak_bytes if made.outlook is not None and made.device.type == "cpu" else 0
    saver.take(made.model.processor, peak_bytes=predicted)
    first_step, seconds_before = progress.step, progress.train_seconds
    limit_minutes = job.recipe.settings.time_limit_minutes
    limit_s = math.inf if limit_minutes is None else limit_minutes * 60
    started = last_step_at = last_line_at = last_evaluation_at = last_save_at = clock()
    watch, losses = StepWatch(warn), LossWatch()
    batches: list[list[int]] = []
    saved: list[Saved] = []
    is_elsewhere = False  # whether the phase that was told last is another than Training
    reason: Ending = "Completed"
    message = f"{plan.total_steps} steps"
    events.write("phase", phase="Training", message=f"{plan.total_steps} steps")
    if should_stop():
        return Outcome("Stopped", f"stopped after step {progress.step}, before another one", None, progress.metrics)

    is_taken = progress.owes_evaluation  # that step is in the checkpoint; what belongs behind it is not done yet
    for step in range(first_step - is_taken, plan.total_steps):
        epoch, place = divmod(step, plan.steps_per_epoch)
        if not is_taken:
            # Which samples: a function of seed and step.
            if not batches or place == 0:
                batches = epoch_batches(
                    made.lengths,
                    batch_size=plan.batch_size,
                    seed=seed,
                    epoch=epoch,
                    shuffle=job.recipe.dataset.shuffle,
                )
            indices = batches[place]

            # One optimizer step.
            schedule = settings.hyperparameters.schedule
            factor = rate_factor(step, total=plan.total_steps, warmup=plan.warmup_steps, schedule=schedule)
            rate = set_rates(made.optimizers, factor)
            with watch.over(step + 1, partial(_named, made, indices)):
                try:
                    loss = _backward(made, indices, epoch, settings, events)
                    less = "hyperparameters.optimizer, training.mode 'lora', a smaller model"
                    with _memory_is_named("taking a step", less):
                        saver.wait_for_copies()
                        norm = _move(made, settings.hyperparameters.optimizer.max_grad_norm)
                except NotFinite as error:
                    saver.finish()
                    good = saved[-1].name if saved else job.resume and job.resume.name
                    raise Diverged(
                        f"{error} at step {step + 1}, with samples {listed(_named(made, indices))}; the last good "
                        f"checkpoint is {good or 'none yet'}; try a lower hyperparameters.learningRate than "
                        f"{settings.hyperparameters.learning_rate:g} or a smaller optimizer.maxGradNorm"
                    ) from error
            if rise := losses.see(step + 1, loss):
                warn(rise)

            # Where we stand.
            now = clock()
            progress.step, progress.epoch = step + 1, (step + 1) / plan.steps_per_epoch
            seconds_now = now - started - saver.waited_s
            progress.train_seconds = seconds_before + seconds_now
            seconds_left = seconds_now / (step + 1 - first_step) * (plan.total_steps - step - 1)
            seconds_left = round(min(seconds_left, max(0.0, limit_s - progress.train_seconds)), 1)
            events.write(
                "step",
                step=step + 1,
                epoch=round(progress.epoch, 4),
                totalSteps=plan.total_steps,
                secondsLeft=seconds_left,
                values={
                    "loss": round(loss, 6),
                    "learningRate": rate,
                    "gradNorm": round(norm, 6),
                    "samplesPerSecond": round(len(indices) / max(1e-6, now - last_step_at), 1),
                },
            )
            if now - last_line_at >= SECONDS_BETWEEN_LINES:
                say(f"step {step + 1}/{plan.total_steps}  loss {loss:.4f}  {seconds_left:.0f} s left")
                last_line_at = now

        saver.look()  # has a checkpoint been written meanwhile?

        # Is the run over? What is measured and saved below does not depend on how it ends, but for a stop.
        is_over = step + 1 == plan.total_steps
        if not is_over and progress.train_seconds >= limit_s:
            reason, is_over = "TimeLimit", True
            message = f"timeLimitMinutes {limit_minutes:g} reached after step {step + 1} of {plan.total_steps}"

        # Is it time to evaluate? Somebody who wants the run to stop does not wait for that: it is owed then.
        waited = clock() - last_evaluation_at
        progress.owes_evaluation = bool(plan.validation_samples) and (
            is_taken
            or is_over
            or is_due(
                settings.validation.every,
                step=step + 1,
                steps_per_epoch=plan.steps_per_epoch,
                seconds_since_last=waited,
            )
        )
        is_taken = is_evaluated = False
        predictions = None
        if progress.owes_evaluation:
            with contextlib.suppress(StopRequested):
                predictions = _evaluate(made, events, job, _steps_kept(saved, saver), say, look)
                is_evaluated, last_evaluation_at = True, clock()
                progress.owes_evaluation = False
                patience = settings.validation.early_stopping
                if patience and progress.evaluations_without_gain >= patience.patience and not is_over:
                    reason, is_over = "EarlyStopped", True
                    message = f"{plan.metric} did not get better for {patience.patience} evaluations"
        if is_stopped := progress.owes_evaluation or (not is_over and (saver.is_refused or should_stop())):
            reason, message = "Stopped", f"stopped after step {step + 1} of {plan.total_steps}"

        # Is it time to save?
        waited = clock() - last_save_at
        if (
            is_over
            or is_stopped
            or is_due(
                settings.checkpoint.every,
                step=step + 1,
                steps_per_epoch=plan.steps_per_epoch,
                seconds_since_last=waited,
            )
        ):
            is_whole_epoch = (step + 1) % plan.steps_per_epoch == 0
            name = f"epoch-{epoch + 1}" if is_whole_epoch else f"step-{step + 1}"
            saver.finish()  # the one before: which is best, and which are removed, goes by their order
            _save(
                job,
                made,
                events,
                saver,
                name,
                is_evaluated=is_evaluated,
                predictions=predictions,
                saved=saved,
                say=say,
            )
            is_elsewhere, last_save_at = True, clock()
            is_stopped = is_stopped or (not is_over and should_stop())
            if is_over or is_stopped:
                saver.finish()
            if saver.is_refused:
                reason, message = "Stopped", f"stopped after step {step + 1}, which there was no disk space to save"
            elif is_stopped:
                reason, message = "Stopped", f"stopped after step {step + 1} of {plan.total_steps}"
            is_stopped = reason == "Stopped"
        if is_over or is_stopped:
            break
        is_elsewhere |= is_evaluated
        if is_elsewhere and saver.step is None:  # while a checkpoint is being written the phase is that
            events.write("phase", phase="Training", message=f"step {step + 1} of {plan.total_steps}")
            is_elsewhere = False
        last_step_at = clock()

    return Outcome(reason, message, saved[-1].name if saved else None, progress.metrics)


def _heed(made: Prepared, settings: ModelSettings, events: EventWriter, warn: Callable[[str], None]) -> None:
    """End or warn as was predicted, then try the largest micro-batch there is: what runs out of memory does so now."""
    outlook = made.outlook
    if outlook is None:
        return
    if outlook.verdict == "Deny":
        raise OutOfMemory(f"{format_bytes(outlook.peak_bytes)} of memory would be needed. {outlook.reason}")
    if outlook.verdict == "Warn":
        warn(f"{format_bytes(outlook.peak_bytes)} of memory will be needed. {outlook.reason}")
    if outlook.is_ample or made.lengths.min() == made.lengths.max():
        return  # there is no want to be found, or the first step finds it
    with torch.random.fork_rng(devices=[made.device] if made.device.type == "cuda" else []):
        _backward(made, [made.longest] * made.plan.micro_batch_size, 0, settings, events)
    _forget_gradients(made)


def _backward(made: Prepared, indices: list[int], epoch: int, settings: ModelSettings, events: EventWriter) -> float:
    """Gradients of the mean loss over all learnt tokens of the batch; returns it. May shrink the plan's micro-batch."""
    while True:
        size = made.plan.micro_batch_size
        try:
            return _accumulate(made, indices, epoch, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if settings.on_out_of_memory == "fail" or size == 1:
                raise OutOfMemory(
                    f"out of memory while training with microBatchSize {size}; what asks for less: a smaller "
                    "hyperparameters.microBatchSize, onOutOfMemory 'shrink', training.mode 'lora', a smaller model: "
                    f"{_first_line(error)}"
                ) from error
        _forget_gradients(made)  # here and not above: until the error is forgotten it keeps what was allocated
        _shrink(made, size // 2, events)


def _shrink(made: Prepared, size: int, events: EventWriter) -> None:
    """Go on with a smaller micro-batch and the same batch; remembered by the next checkpoint, told to everybody."""
    before, step = made.plan.micro_batch_size, made.progress.step + 1
    if made.device.type == "cuda":
        torch.cuda.empty_cache()
    made.plan = with_micro_batch(made.plan, size, f"{before} was too much for the memory at step {step}")
    made.progress.micro_batch_limit = size
    made.run_document["status"]["plan"] = made.plan.document
    message = f"out of memory with microBatchSize {before} at step {step}; going on with {size} at the same batch size"
    events.write("plan", plan=made.plan.document)
    events.write("warning", message=message)


def _accumulate(made: Prepared, indices: list[int], epoch: int, micro_batch_size: int) -> float:
    parts = [indices[start : start + micro_batch_size] for start in range(0, len(indices), micro_batch_size)]
    batches = [made.draw(part, epoch) for part in parts]
    tokens = max(1, sum(batch.label_count for batch in batches))
    total = 0.0
    for batch in batches:
        loss = made.losses(batch.to(made.device)) / tokens
        made.scaler.scale(loss).backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise NotFinite(f"the loss is {total}")
    return total


def _move(made: Prepared, longest: float | None) -> float:
    """Let the optimizers take the step; returns the length of the gradient before it was cut."""
    is_scaled = made.scaler.is_enabled()
    if is_scaled:
        for optimizer in made.optimizers:
            made.scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(made.parameters, longest if longest is not None else math.inf))
    if not is_scaled and not math.isfinite(norm):
        raise NotFinite(f"the gradient is {norm}")
    for optimizer in made.optimizers:
        if is_scaled:  # it leaves out a step whose gradients are not finite, and scales less from then on
            made.scaler.step(optimizer)
        else:
            optimizer.step()
    if is_scaled:
        made.scaler.update()
    _forget_gradients(made)
    return norm if math.isfinite(norm) else 0.0


class NotFinite(Exception):
    """A loss or a gradient is no number any more."""


def _named(made: Prepared, indices: list[int]) -> list[str]:
    """Samples of the training data as people know them: by the picture's name, or by their place."""
    return [made.data.train[index].filename or f"#{index}" for index in indices]


def _forget_gradients(made: Prepared) -> None:
    for optimizer in made.optimizers:
        optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _memory_is_named(doing: str, less: str) -> Iterator[None]:
    """Say what was being done when memory ran out, and which settings ask for less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory while {doing}; what asks for less: {less}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _evaluate(
    made: Prepared,
    events: EventWriter,
    job: Job,
    keep: list[int],
    say: Callable[[str], None],
    look: Callable[[], None],
) -> Path | None:
    """Measure the held-out data and note whether that is a gain. Returns the file of predictions, if the disk took it.

    Of earlier predictions those of the steps in ``keep`` stay.

    Raises:
        StopRequested: it was broken off, and nothing has been noted.
    """
    look()
    plan, progress, settings = made.plan, made.progress, job.recipe.model.validation
    events.write("phase", phase="Evaluating", message=f"{plan.validation_samples} held-out samples")
    less = "validation.maxSamples, evaluation.max_new_tokens, a smaller model"
    with _memory_is_named("evaluating", less):
        found = evaluate(
            made.model.module,
            made.model.processor.tokenizer,
            made.held_out,
            made.data.validation,
            task=job.recipe.task,
            count=plan.validation_samples,
            previews=settings.previews,
            losses=made.plain_losses,
            generation=made.generation,
            seed=job.recipe.model.evaluation.seed,
            device=made.device,
            check_cancelled=look,
        )
    progress.metrics = {f"validation/{name}": round(value, 6) for name, value in found.values.items()}
    events.write(
        "evaluation",
        step=progress.step,
        epoch=round(progress.epoch, 4),
        metricName=plan.metric,
        values=progress.metrics,
        previews=found.previews,
    )
    value = found.values[plan.metric]
    say(f"epoch {progress.epoch:.2f}  {plan.metric} {value:.4f}  validation loss {found.values['loss']:.4f}")
    least = settings.early_stopping.min_delta if settings.early_stopping else 0.0
    if progress.best_seen is None or _gain(value, progress.best_seen, plan.is_smaller_better) > least:
        progress.best_seen, progress.evaluations_without_gain = value, 0
    else:
        progress.evaluations_without_gain += 1
    try:
        return write_predictions(job.folder, progress.step, found.predictions, keep=keep)
    except OSError as error:  # they decide nothing, so training goes on without them
        message = f"the predictions of step {progress.step} could not be written: {error.strerror or error}"
        events.write("warning", message=message)
        return None


def _gain(value: float, best: float, is_smaller_better: bool) -> float:
    return best - value if is_smaller_better else value - best


def _steps_kept(saved: list[Saved], saver: Saver) -> list[int]:
    """Of the checkpoints that are there, and of the one that is being written."""
    return [item.step for item in saved] + ([] if saver.step is None else [saver.step])


def _save(
    job: Job,
    made: Prepared,
    events: EventWriter,
    saver: Saver,
    name: str,
    *,
    is_evaluated: bool,
    predictions: Path | None,
    saved: list[Saved],
    say: Callable[[str], None],
) -> None:
    """Have a checkpoint written; once it is proven, say so and remove those that need not be kept."""
    plan, progress, settings = made.plan, made.progress, job.recipe.model.checkpoint
    best_before = progress.best, progress.best_checkpoint
    # Without held-out data nothing tells which is best; then it is the newest.
    is_best = not plan.validation_samples
    if is_evaluated:
        value = progress.metrics[f"validation/{plan.metric}"]
        is_best = progress.best is None or _gain(value, progress.best, plan.is_smaller_better) > 0
        if is_best:
            progress.best = value
    if is_best:
        progress.best_checkpoint = name
    metrics = progress.metrics if is_evaluated else {}
    previous = saved[-1] if saved else None
    contents = contents_of(
        made.model,
        made.optimizers,
        progress,
        run_document=made.run_document,
        scaler=made.scaler.state_dict() or None,
    )
    needed = needed_bytes(made.model, contents, previous)
    copied = saver.copies_of(contents, made.device)
    if copied is not None:
        contents = copied.contents
        if saver.room.is_there_for(needed):  # said now, for what the writer says is told behind the next step
            saver.tell("Saving", name)

    def write(previous: Saved | None) -> Saved:
        saver.tell("Saving", name)
        events.sync()  # after loss of power, training goes on behind this checkpoint and tells no step before it again
        with _memory_is_named("saving", "training.mode 'lora', a smaller model"):
            return save_checkpoint(
                job.folder,
                name,
                made.model,
                contents,
                metrics=metrics,
                is_best=is_best,
                previous=previous,
                predictions=predictions,
            )

    def done(item: Saved | None) -> None:
        if item is None:
            progress.best, progress.best_checkpoint = best_before
            return
        events.write(
            "checkpoint",
            checkpoint=name,
            step=contents.step,
            epoch=int(contents.epoch),
            folder=str(item.folder),
            metrics=metrics,
            isBest=is_best,
        )
        say(f"saved {name}{', the best so far' if is_best else ''}")
        kept = prune([*saved, item], keep=settings.keep, keep_best=settings.keep_best, best=progress.best_checkpoint)
        if gone := [other for other in (*saved, item) if other not in kept]:
            saver.remove(partial(remove_checkpoints, gone))
        saved[:] = kept
        prune_predictions(job.folder, keep=[other.step for other in saved])

    def needed_without_loan() -> int:
        return needed_bytes(made.model, contents, None)

    work = partial(_written, write, saver, name, previous, needed, needed_without_loan)
    saver.begin(contents.step, work, done, copied)


def _written(
    write: Callable[[Saved | None], Saved],
    saver: Saver,
    name: str,
    previous: Saved | None,
    needed: int,
    needed_without_loan: Callable[[], int],
) -> Saved | None:
    """Save when there is room, and from the start whenever the disk refuses; None when told to stop before it is done.

    Raises:
        OSError: the disk fails again and again.
    """
    failures, room = 0, saver.room
    while True:
        if not room.wait_for(needed, name):
            return None
        try:
            return write(previous)
        except OSError as error:
            if error.errno in NO_ROOM:
                if not room.wait_after_refusal(needed, name):
                    return None
                continue
            failures += 1
            if error.errno != errno.EIO or failures == SAVE_TRIES:
                raise
            # Nor is anything lent from a checkpoint on a disk that fails.
            previous, needed = None, needed_without_loan()
            saver.warn(f"{name} could not be saved and is saved again: {error.strerror}")
