"""The training of one attempt, told in order. Start reading here.

A recipe comes in, a folder fills with events, checkpoints and a result. The loop has no callbacks: after each step it
asks whether it is time to evaluate, to save, to end. What decides is pure (``plan``, ``optim``); what is remembered
lies in ``Progress`` and so in every checkpoint. Data order and rates are functions of the step, so a resumed run does
bit for bit what an undisturbed one would have done, on one machine with as many threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from runyard.flows.blocks import ModelSettings
from runyard.rundir import EventWriter
from runyard.trainer.checkpoint import Saved, prune, save_checkpoint
from runyard.trainer.encode import epoch_batches
from runyard.trainer.errors import Diverged, OutOfMemory
from runyard.trainer.evaluation import evaluate
from runyard.trainer.optim import rate_factor, set_rates
from runyard.trainer.plan import Machine, is_due, plan_in_words
from runyard.trainer.prepare import Job, Prepared, prepare

SECONDS_BETWEEN_LINES = 2.0  # on stdout; every step is an event


@dataclass(frozen=True)
class Outcome:
    """How training ended (Completed, EarlyStopped or Stopped), and the newest checkpoint."""

    reason: str
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
) -> Outcome:
    """Train until the plan is done, validation stops improving, or ``should_stop``.

    Raises:
        TrainingFailed: recipe or data are at fault.
    """
    events.write("phase", phase="Preparing", message="Reading data and model")
    made = prepare(job, machine)
    plan, progress, settings, seed = made.plan, made.progress, job.recipe.model, job.recipe.settings.seed
    events.write("plan", plan=plan.document)
    say(plan_in_words(plan))
    if progress.step:
        say(f"going on after step {progress.step}")

    first_step, seconds_before = progress.step, progress.train_seconds
    started = last_step_at = last_line_at = last_evaluation_at = last_save_at = clock()
    micro_batch_size = plan.micro_batch_size
    batches: list[list[int]] = []
    saved: list[Saved] = []
    reason, message = "Completed", f"{plan.total_steps} steps"
    events.write("phase", phase="Training", message=f"{plan.total_steps} steps")
    if should_stop():
        return Outcome("Stopped", f"stopped after step {progress.step}, before another one", None, progress.metrics)

    for step in range(first_step, plan.total_steps):
        # Which samples: a function of seed and step.
        epoch, place = divmod(step, plan.steps_per_epoch)
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
        loss, micro_batch_size = _backward(made, indices, epoch, micro_batch_size, settings, events)
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at step {step + 1}; try a lower hyperparameters.learningRate than "
                f"{settings.hyperparameters.learning_rate:g} or a smaller optimizer.maxGradNorm"
            )
        norm = _move(made, settings.hyperparameters.optimizer.max_grad_norm)

        # Where we stand.
        now = clock()
        progress.step, progress.epoch = step + 1, (step + 1) / plan.steps_per_epoch
        progress.train_seconds = seconds_before + now - started
        pace = (now - started) / (step + 1 - first_step)
        seconds_left = round(pace * (plan.total_steps - step - 1), 1)
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

        # Is the run over? What is measured and saved below does not depend on how it ends, but for a stop.
        is_over = step + 1 == plan.total_steps
        if should_stop():
            reason, message, is_over = "Stopped", f"stopped after step {step + 1} of {plan.total_steps}", True
        elif job.recipe.settings.time_limit_minutes is not None and not is_over:
            is_over = progress.train_seconds >= job.recipe.settings.time_limit_minutes * 60
            message = f"time limit reached after step {step + 1} of {plan.total_steps}" if is_over else message

        # Is it time to evaluate? Somebody who wants the run to stop does not want to wait for that.
        is_evaluated = False
        if reason != "Stopped" and plan.validation_samples:
            waited = clock() - last_evaluation_at
            if is_over or is_due(
                settings.validation.every,
                step=step + 1,
                steps_per_epoch=plan.steps_per_epoch,
                seconds_since_last=waited,
            ):
                _evaluate(made, events, job, say)
                is_evaluated, last_evaluation_at = True, clock()
                patience = settings.validation.early_stopping
                if patience and progress.evaluations_without_gain >= patience.patience and not is_over:
                    reason, is_over = "EarlyStopped", True
                    message = f"{plan.metric} did not get better for {patience.patience} evaluations"

        # Is it time to save?
        waited = clock() - last_save_at
        if is_over or is_due(
            settings.checkpoint.every,
            step=step + 1,
            steps_per_epoch=plan.steps_per_epoch,
            seconds_since_last=waited,
        ):
            is_whole_epoch = (step + 1) % plan.steps_per_epoch == 0
            name = f"epoch-{epoch + 1}" if is_whole_epoch else f"step-{step + 1}"
            _save(job, made, events, name, is_evaluated=is_evaluated, saved=saved, say=say)
            last_save_at = clock()
        if is_evaluated and not is_over:
            events.write("phase", phase="Training", message=f"step {step + 1} of {plan.total_steps}")
        last_step_at = clock()
        if is_over:
            break

    return Outcome(reason, message, saved[-1].name if saved else None, progress.metrics)


def _backward(
    made: Prepared, indices: list[int], epoch: int, micro_batch_size: int, settings: ModelSettings, events: EventWriter
) -> tuple[float, int]:
    """Gradients of the mean loss over all learnt tokens of the batch; returns it, and the micro-batch that fitted."""
    while True:
        try:
            return _accumulate(made, indices, epoch, micro_batch_size), micro_batch_size
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if settings.on_out_of_memory == "fail" or micro_batch_size == 1:
                raise OutOfMemory(
                    f"out of memory with microBatchSize {micro_batch_size}; take a smaller one, smaller "
                    f"images.maxPixels, or onOutOfMemory 'shrink': {str(error).splitlines()[0]}"
                ) from error
        micro_batch_size = (micro_batch_size + 1) // 2
        _forget_gradients(made)
        events.write("warning", message=f"out of memory; going on with microBatchSize {micro_batch_size}")


def _accumulate(made: Prepared, indices: list[int], epoch: int, micro_batch_size: int) -> float:
    parts = [indices[start : start + micro_batch_size] for start in range(0, len(indices), micro_batch_size)]
    batches = [made.draw(part, epoch) for part in parts]
    tokens = max(1, sum(batch.learnt_tokens for batch in batches))
    total = 0.0
    for batch in batches:
        loss = made.losses(batch.to(made.device)) / tokens
        made.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def _move(made: Prepared, longest: float | None) -> float:
    """Let the optimizers take the step; returns the length of the gradient before it was cut."""
    for optimizer in made.optimizers:
        made.scaler.unscale_(optimizer)
    parameters = [parameter for _, parameter in made.model.trainable()]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, longest if longest is not None else math.inf))
    if made.scaler.is_enabled() or math.isfinite(norm):
        for optimizer in made.optimizers:
            made.scaler.step(optimizer)
        made.scaler.update()
    else:
        raise Diverged(f"the gradient is {norm} at step {made.progress.step + 1}; try a lower learningRate")
    _forget_gradients(made)
    return norm if math.isfinite(norm) else 0.0


def _forget_gradients(made: Prepared) -> None:
    for optimizer in made.optimizers:
        optimizer.zero_grad(set_to_none=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the CPU allocator only words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _evaluate(made: Prepared, events: EventWriter, job: Job, say: Callable[[str], None]) -> None:
    """Measure the held-out data and note whether that is a gain."""
    plan, progress, settings = made.plan, made.progress, job.recipe.model.validation
    events.write("phase", phase="Evaluating", message=f"{plan.validation_samples} held-out samples")
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


def _gain(value: float, best: float, is_smaller_better: bool) -> float:
    return best - value if is_smaller_better else value - best


def _save(
    job: Job,
    made: Prepared,
    events: EventWriter,
    name: str,
    *,
    is_evaluated: bool,
    saved: list[Saved],
    say: Callable[[str], None],
) -> None:
    """Write a checkpoint, say so, and remove those that need not be kept."""
    plan, progress, settings = made.plan, made.progress, job.recipe.model.checkpoint
    events.write("phase", phase="Saving", message=name)
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
    events.sync()  # after loss of power, training goes on behind this checkpoint and tells none of these steps again
    item = save_checkpoint(
        job.folder,
        name,
        made.model,
        made.optimizers,
        progress,
        metrics=metrics,
        run_document=made.run_document,
        is_best=is_best,
        scaler=made.scaler.state_dict() or None,
        previous=saved[-1] if saved else None,
    )
    events.write(
        "checkpoint",
        checkpoint=name,
        step=progress.step,
        epoch=int(progress.epoch),
        folder=str(item.folder),
        metrics=metrics,
        isBest=is_best,
    )
    say(f"saved {name}{', the best so far' if is_best else ''}")
    saved[:] = prune([*saved, item], keep=settings.keep, keep_best=settings.keep_best, best=progress.best_checkpoint)
