"""The training of one attempt, from top to bottom. Start reading here.

``train`` prepares data, model and plan, then runs a ``TrainLoop``. Each iteration takes one
optimizer step, then ends, evaluates and saves as far as each is due. There are no callbacks.
Decisions are pure functions (``plan``, ``optim``). What must survive a restart is in ``Progress``,
and so in every checkpoint. Data order and learning rates depend only on the step. So a resumed run
gives bit for bit the results of an uninterrupted one, on one machine with as many threads.

Stop requests are checked everywhere. A step in progress is completed, whereas reading data and
evaluating are interrupted. A resumed run first completes the interrupted evaluation.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from runyard.flows import ResolvedFlow
from runyard.flows.blocks import Every, ModelSettings
from runyard.rundir import Ending, EventWriter, free_bytes
from runyard.trainer.activity import ActivityReporter
from runyard.trainer.checkpoints.async_checkpoint import AsyncCheckpointer
from runyard.trainer.checkpoints.checkpoint import (
    CheckpointContents,
    SavedCheckpoint,
    add_evaluation,
    collect_contents,
    estimate_bytes,
    remove_checkpoints,
    save_checkpoint,
    select_kept,
)
from runyard.trainer.data.cache import Hooks
from runyard.trainer.data.encode import epoch_batches
from runyard.trainer.data.mixtures import make_mixture
from runyard.trainer.devices import keep_random_states, return_memory
from runyard.trainer.errors import Diverged, OutOfMemory, PeerLost, StopRequested
from runyard.trainer.evaluation.baseline import PREFIX as BASELINE_PREFIX
from runyard.trainer.evaluation.baseline import score_baseline
from runyard.trainer.evaluation.batches import MAX_BATCH, BatchLimit
from runyard.trainer.evaluation.evaluation import (
    EvaluationOutOfMemory,
    EvaluationResult,
    evaluate,
)
from runyard.trainer.evaluation.findings import Comparison, explain_nothing_learned, summarize
from runyard.trainer.evaluation.predictions import prune_predictions, write_predictions
from runyard.trainer.evaluation.samples import SampleWriter
from runyard.trainer.plan import Hardware, format_plan, is_due, with_micro_batch
from runyard.trainer.prepare import Job, TrainState, prepare
from runyard.trainer.sharding import gather_contents, gather_tensor
from runyard.trainer.steps.memory import format_bytes, is_out_of_memory
from runyard.trainer.steps.optim import rate_factor, set_rates
from runyard.trainer.steps.rounding import RoundedSteps, get_clip_scale, measure_norm
from runyard.trainer.steps.scaling import (
    MAX_SKIPPED_STEPS,
    skip_step,
    take_scaled_step,
    unscale,
)
from runyard.trainer.watchdog import LossSpikeDetector, SlowStepDetector, format_names
from vi.api.responses import RunFinding

SECONDS_BETWEEN_LINES = 2.0  # on stdout; every step has an event


@dataclass(frozen=True)
class Outcome:
    """How training ended, and the newest checkpoint."""

    reason: Ending
    message: str
    checkpoint: str | None
    metrics: dict[str, float]
    findings: list[RunFinding] = field(default_factory=list)


def train(
    job: Job,
    machine: Hardware,
    events: EventWriter,
    *,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    free: Callable[[Path], int] = free_bytes,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Train until the plan is complete, validation stops improving, or ``should_stop``.

    Raises:
        TrainingFailed: the flow or the data cannot be trained.
    """
    # However the loop ends, the checkpoint that is being written is completed first.
    with AsyncCheckpointer(
        job.folder, events, should_stop=should_stop, say=say, free_bytes=free, sleep=sleep
    ) as checkpointer:
        with ActivityReporter(events, job.start_message) as activity:
            hooks = make_hooks(events, activity, should_stop, say)
            hooks.on_progress(job.start_message)
            suggestions = "dataset.maxSamples, architecture.size, training.mode 'lora'"
            try:
                with explain_out_of_memory("preparing data and model", suggestions):
                    state = prepare(job, machine, hooks=hooks)
            except StopRequested:
                return Outcome("Stopped", "stopped while preparing, before another step", None, {})
            events.write("plan", plan=state.plan.document)
            say(format_plan(state.plan))
            hooks.on_activity(f"Trying a micro-batch of {state.plan.micro_batch_size}")
            enforce_memory_estimate(state, job.flow.model, events, hooks.on_warning)
        if state.progress.step:
            say(f"resuming after step {state.progress.step}")
        checkpointer.reserve(state.model.processor, peak_bytes=state.predicted_host_bytes)
        loop = TrainLoop(
            job, state, events, checkpointer, hooks, should_stop=should_stop, say=say, clock=clock
        )
        with contextlib.closing(state.loader):
            outcome = loop.run()
        state.world.announce("end")
        return outcome


def make_hooks(
    events: EventWriter,
    activity: ActivityReporter,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Hooks:
    """Return how preparing and evaluating check for a stop, report progress and warn."""

    def check_cancelled() -> None:
        if should_stop():
            raise StopRequested

    def warn(message: str) -> None:
        events.write("warning", message=message)
        say(f"warning: {message}")

    return Hooks(
        check_cancelled=check_cancelled,
        on_activity=activity.begin,
        on_progress=activity.report,
        on_warning=warn,
    )


@dataclass(frozen=True, kw_only=True)
class PendingCheckpoint:
    """A checkpoint that is not written yet, with everything as it was at its step."""

    name: str
    contents: CheckpointContents
    metrics: dict[str, float]
    is_best: bool
    predictions: Path | None
    is_unevaluated: bool


class TrainLoop:
    """The loop over optimizer steps, and its state between them.

    ``ending`` is None while the loop continues, then the reason why it ends.
    """

    def __init__(
        self,
        job: Job,
        state: TrainState,
        events: EventWriter,
        checkpointer: AsyncCheckpointer,
        hooks: Hooks,
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self.job, self.state, self.events, self.checkpointer = job, state, events, checkpointer
        self.hooks, self.should_stop, self.say, self.clock = hooks, should_stop, say, clock
        self.settings, self.progress = job.flow.model, state.progress
        self.limit_minutes = job.flow.settings.time_limit_minutes
        self.limit_s = math.inf if self.limit_minutes is None else self.limit_minutes * 60
        self.first_step, self.seconds_before = self.progress.step, self.progress.train_seconds
        self.started_at = self.first_step_at = self.last_step_at = self.last_line_at = clock()
        self.last_evaluation_at = self.last_save_at = self.started_at
        self.slow_steps, self.loss_spikes = SlowStepDetector(hooks.on_warning), LossSpikeDetector()
        self.order = BatchOrder(job.flow, state)
        self.saved: list[SavedCheckpoint] = []
        # Saved before the evaluation at its step, which has yet to be added.
        self.unevaluated: tuple[PendingCheckpoint, SavedCheckpoint] | None = None
        self.samples = SampleWriter(
            job.folder,
            explain=lambda sample, raw: state.answer_form.explain_problem(
                sample.task or job.flow.task, raw
            ),
        )
        self.batch_limit = limit_evaluation_batch(job, state, hooks.on_warning)
        self.evaluated_step: int | None = None
        self.predictions: Path | None = None  # of the last evaluation
        self.baseline: dict[str, float] = {}  # of constant answers, once scored
        self.findings: list[RunFinding] = []
        self.is_phase_stale = False  # whether the last phase event was not "Training"
        self.ending: Ending | None = None

    def run(self) -> Outcome:
        """Repeat step, evaluation and save until the loop ends."""
        plan, progress = self.state.plan, self.progress
        self.recall_first_loss()
        if self.must_evaluate_first():
            self.evaluate_before_training()
        self.events.write("phase", phase="Training", message=f"{plan.total_steps} steps")
        if self.should_stop():
            message = f"stopped after step {progress.step}, before another one"
            return Outcome("Stopped", message, None, progress.metrics)
        if progress.owes_evaluation:  # a stop interrupted the evaluation of the step we resume from
            self.complete_step()
        while self.ending is None and progress.step < plan.total_steps:
            with self.report_first_step():
                self.run_step()
            self.complete_step()
        newest = self.saved[-1].name if self.saved else None
        message = self.describe_ending()
        if (unlearned := self.report_findings()) is not None:
            message = f"{message}; {summarize(unlearned)}"
        return Outcome(self.ending or "Completed", message, newest, progress.metrics, self.findings)

    def must_evaluate_first(self) -> bool:
        """Return whether to evaluate before the first step, which an earlier attempt may have done.

        After the kernel has killed an attempt for lack of memory, only what training needs is done.
        """
        status = self.job.run.status
        is_known = status.progress is not None and status.progress.metric is not None
        return (
            self.settings.validation.before_training
            and self.progress.step == 0
            and self.state.plan.validation_samples > 0
            and not is_known
            and not status.micro_batch_limit
        )

    def recall_first_loss(self) -> None:
        """Take over the loss that an attempt without a checkpoint measured before its first step.

        The run's status has it until another evaluation.
        """
        known = self.job.run.status.progress
        if known is None or known.step or self.progress.step or known.metric_name != "loss":
            return
        self.progress.first_loss = known.metric

    def evaluate_before_training(self) -> None:
        """Evaluate the model that training starts from; whatever fails, training begins.

        Training depends on none of it: no checkpoint, best value or early stopping does.
        """
        with contextlib.suppress(StopRequested):
            with self.warn_of_failure("scoring the baseline"):
                self.baseline = self.score_baseline()
            with self.warn_of_failure("the evaluation before the first step"):
                found = self.measure()
                if self.state.plan.metric == "loss":
                    self.progress.first_loss = found.values["loss"]
                self.write_evaluation(name_metrics(found.values) | self.baseline, found.previews)
                self.store_answers(found.predictions)
        self.first_step_at = self.last_step_at = self.last_evaluation_at = self.clock()

    def find_nothing_learned(self) -> Comparison | None:
        """Return the best metric and what needs no learning if it is not better, else None.

        A stopped run, and one without a value to compare with, have no such finding.
        """
        plan, progress = self.state.plan, self.progress
        seen = [value for value in (progress.best, progress.best_seen) if value is not None]
        if self.ending == "Stopped" or not seen:
            return None
        reference = self.get_reference()
        if reference is None:
            return None
        found = Comparison(
            metric=plan.metric,
            best=min(seen) if plan.is_smaller_better else max(seen),
            reference=reference,
            samples=plan.validation_samples,
            is_smaller_better=plan.is_smaller_better,
        )
        return None if found.has_learned else found

    def get_reference(self) -> float | None:
        """Return the metric of constant answers, or the loss before the first step; None if
        unknown.

        An attempt that resumes has not scored the baseline, and it depends on nothing but the data.
        """
        metric = self.state.plan.metric
        if metric == "loss":
            return self.progress.first_loss
        known = self.job.run.status.progress
        if known is not None and known.baseline is not None and known.metric_name == metric:
            return known.baseline
        with contextlib.suppress(StopRequested), self.warn_of_failure("scoring the baseline"):
            self.baseline = self.baseline or self.score_baseline()
        return self.baseline.get(f"{BASELINE_PREFIX}{metric}")

    def report_findings(self) -> Comparison | None:
        """Write the event of a finding and a line, and return what it compares, if there is one."""
        found = self.find_nothing_learned()
        if found is not None:
            finding = explain_nothing_learned(found, self.job.flow, self.state.plan)
            self.events.write("finding", **msgspec.to_builtins(finding))
            self.say(f"warning: {finding.message}")
            for suggestion in finding.suggestions:
                self.say(f"  try: {suggestion}")
            self.findings.append(finding)
        return found

    def score_baseline(self) -> dict[str, float]:
        """Return the metrics of constant answers on the held-out samples.

        Raises:
            StopRequested: it was interrupted.
        """
        data, count = self.state.data, self.state.plan.validation_samples
        with ActivityReporter(self.events, "Scoring the baseline", phase="Evaluating"):
            return score_baseline(
                self.job.flow.task,
                data.train,
                data.validation[:count],
                check_cancelled=self.hooks.check_cancelled,
            )

    @contextlib.contextmanager
    def warn_of_failure(self, name: str) -> Iterator[None]:
        """Warn if something fails that training does not need."""
        effect = "training begins" if self.ending is None else "it is left out"
        try:
            yield
        except (StopRequested, PeerLost):
            raise
        except Exception as error:
            self.hooks.on_warning(f"{name} failed: {first_line(error)}; {effect}")

    def report_first_step(self) -> contextlib.AbstractContextManager[object]:
        """Return a context that reports the seconds of the first step, which may take minutes."""
        step = self.progress.step
        if step != self.first_step:
            return contextlib.nullcontext()
        activity = f"step {step + 1} of {self.state.plan.total_steps}"
        return ActivityReporter(self.events, activity, phase="Training")

    def run_step(self) -> None:
        """Take one optimizer step, and write its event."""
        state, step = self.state, self.progress.step
        max_grad_norm = self.settings.hyperparameters.optimizer.max_grad_norm
        state.world.announce("step")
        epoch, indices, learning_rate = begin_step(self.job.flow, state, self.order)
        with self.slow_steps.watch(step + 1, partial(name_samples, state, indices)):
            try:
                loss = compute_gradients(state, indices, epoch, self.settings, self.events)
                suggestions = "hyperparameters.optimizer, training.mode 'lora', a smaller model"
                with explain_out_of_memory("taking a step", suggestions):
                    self.checkpointer.wait_for_copies()
                    norm = update_weights(state, loss, max_grad_norm)
                self.count_skipped_steps(loss, norm)
            except NotFinite as error:
                raise self.describe_divergence(error, indices) from error
        if math.isfinite(loss) and (warning := self.loss_spikes.update(step + 1, loss)):
            self.hooks.on_warning(warning)
        state.world.beat.write("apart")
        share = state.loader.end_step()
        self.record_step(loss, norm, learning_rate, samples=len(indices), wait_share=share)

    def count_skipped_steps(self, loss: float, norm: float) -> None:
        """Note whether a step with a scaled loss was skipped, and warn about it.

        Raises:
            NotFinite: too many in a row were.
        """
        progress = self.progress
        if math.isfinite(loss) and math.isfinite(norm):
            progress.skipped_steps = 0
            return
        progress.skipped_steps += 1
        scale = self.state.scaler.get_scale()
        problem = f"the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        if progress.skipped_steps == MAX_SKIPPED_STEPS:
            raise NotFinite(
                f"{problem} in {MAX_SKIPPED_STEPS} steps in a row, although the loss scale was "
                f"lowered to {scale:g}; float16 may not suffice (compute.precisionType 'float32')"
            )
        self.hooks.on_warning(
            f"step {progress.step + 1} was skipped: {problem} in float16; the loss scale is now "
            f"{scale:g}"
        )

    def complete_step(self) -> None:
        """Evaluate, save and end after a step, as far as each is due."""
        self.checkpointer.poll()
        self.ending = self.check_limits()
        self.progress.owes_evaluation = self.is_evaluation_due()
        if self.progress.owes_evaluation and self.is_save_due():
            self.save_before_evaluation()
        if not self.checkpointer.is_refused:
            self.maybe_evaluate()
        # An evaluation still owed was interrupted by a stop. The run then counts as stopped, even
        # after its last step, so that a resumed attempt completes the evaluation.
        if self.progress.owes_evaluation or (
            self.ending is None and (self.checkpointer.is_refused or self.should_stop())
        ):
            self.ending = "Stopped"
        self.maybe_save()
        # While a checkpoint is being written, the phase stays "Saving".
        if self.ending is None and self.is_phase_stale and self.checkpointer.pending_step is None:
            message = f"step {self.progress.step} of {self.state.plan.total_steps}"
            self.events.write("phase", phase="Training", message=message)
            self.is_phase_stale = False
        self.last_step_at = self.clock()

    def record_step(
        self, loss: float, norm: float, learning_rate: float, *, samples: int, wait_share: float
    ) -> None:
        """Advance the counters by a step, and write its event and now and then a line."""
        progress, total = self.progress, self.state.plan.total_steps
        now = self.clock()
        progress.step += 1
        progress.epoch = progress.step / self.state.plan.steps_per_epoch
        seconds = now - self.started_at - self.checkpointer.waited_s
        progress.train_seconds = self.seconds_before + seconds
        step_s = now - self.first_step_at - self.checkpointer.waited_s
        seconds_left = step_s / (progress.step - self.first_step) * (total - progress.step)
        seconds_to_limit = max(0.0, self.limit_s - progress.train_seconds)
        seconds_left = round(min(seconds_left, seconds_to_limit), 1)
        self.events.write(
            "step",
            step=progress.step,
            epoch=round(progress.epoch, 4),
            totalSteps=total,
            secondsLeft=seconds_left,
            values={
                **({"loss": round(loss, 6)} if math.isfinite(loss) else {}),
                "learningRate": learning_rate,
                **({"gradNorm": round(norm, 6)} if math.isfinite(norm) else {}),
                "samplesPerSecond": round(samples / max(1e-6, now - self.last_step_at), 1),
                "dataWaitShare": round(wait_share, 4),
            },
        )
        if now - self.last_line_at >= SECONDS_BETWEEN_LINES:
            self.say(f"step {progress.step}/{total}  loss {loss:.4f}  {seconds_left:.0f} s left")
            self.last_line_at = now

    def check_limits(self) -> Ending | None:
        """Return why the run ends after this step, or None."""
        if self.progress.step == self.state.plan.total_steps:
            return "Completed"
        return "TimeLimit" if self.progress.train_seconds >= self.limit_s else None

    def is_due(self, every: str | Every, last_at: float) -> bool:
        """Return whether an interval of the flow has passed since ``last_at``."""
        return is_due(
            every,
            step=self.progress.step,
            steps_per_epoch=self.state.plan.steps_per_epoch,
            seconds_since_last=self.clock() - last_at,
        )

    def is_evaluation_due(self) -> bool:
        """Return whether to evaluate after this step: it is due, owed or the last one."""
        return self.state.plan.validation_samples > 0 and (
            self.progress.owes_evaluation
            or self.ending is not None
            or self.is_due(self.settings.validation.every, self.last_evaluation_at)
        )

    def is_save_due(self) -> bool:
        every = self.settings.checkpoint.every
        return self.ending is not None or self.is_due(every, self.last_save_at)

    def save_before_evaluation(self) -> None:
        """Save a checkpoint, so that whatever happens in the evaluation loses no step.

        The step that an attempt resumes from has been saved.
        """
        if self.progress.step == self.first_step:
            return

        def keep(pending: PendingCheckpoint, saved: SavedCheckpoint) -> None:
            self.unevaluated = pending, saved

        self.checkpointer.wait()
        self.save(keep)
        self.checkpointer.wait()

    def maybe_evaluate(self) -> None:
        """Evaluate if it is owed; end the run if it has not improved for too long."""
        progress, validation = self.progress, self.settings.validation
        if not progress.owes_evaluation:
            return
        with contextlib.suppress(StopRequested):
            self.evaluate_or_skip()
            self.last_evaluation_at, self.is_phase_stale = self.clock(), True
            progress.owes_evaluation = False
            early_stopping = validation.early_stopping
            if (
                self.ending is None
                and early_stopping
                and progress.evaluations_without_gain >= early_stopping.patience
            ):
                self.ending = "EarlyStopped"

    def evaluate_or_skip(self) -> None:
        """Evaluate; skip it with a warning if there is too little memory for a single sample.

        Raises:
            StopRequested: it was interrupted, and nothing has been recorded.
        """
        step = self.progress.step
        try:
            self.predictions = self.run_evaluation()
            self.evaluated_step = step
        except EvaluationOutOfMemory as error:
            self.hooks.on_warning(
                f"the evaluation of step {step} is skipped, because a single sample ran out of "
                "memory; training continues; try: a smaller images.maxPixels, "
                f"evaluation.max_new_tokens, a smaller model: {error}"
            )
            self.progress.evaluation_batch_limit = self.batch_limit.size

    def run_evaluation(self) -> Path | None:
        """Measure the held-out data and write the event; return the file of predictions.

        Returns None if the disk refused that file.

        Raises:
            StopRequested: it was interrupted, and nothing has been recorded.
            EvaluationOutOfMemory: there is too little memory for a single sample.
        """
        found = self.measure()
        self.progress.metrics = name_metrics(found.values)
        self.write_evaluation(self.progress.metrics, found.previews)
        self.note_improvement(found.values[self.state.plan.metric])
        return self.store_answers(found.predictions)

    def measure(self) -> EvaluationResult:
        """Evaluate the model as it is now, and report the seconds so far every few seconds.

        Raises:
            StopRequested: it was interrupted.
            EvaluationOutOfMemory: there is too little memory for a single sample.
        """
        self.hooks.check_cancelled()
        state, plan = self.state, self.state.plan
        state.loader.settle()
        message = f"{plan.validation_samples} held-out samples"
        self.events.write("phase", phase="Evaluating", message=message)
        state.world.announce("evaluate")
        with (
            ActivityReporter(self.events, message, phase="Evaluating"),
            state.gather_weights(),
        ):
            found = evaluate(
                state.model.module,
                state.model.processor.tokenizer,
                state.validation,
                state.data.validation,
                task=self.job.flow.task,
                previews=self.settings.validation.previews,
                check_cancelled=self.hooks.check_cancelled,
                limit=self.batch_limit,
                **choose_evaluation_settings(self.job, state),
            )
        self.progress.evaluation_batch_limit = found.batch_limit
        return found

    def store_answers(self, predictions: list[dict[str, Any]]) -> Path | None:
        """Write the samples that people look at, and the file of predictions, which is returned.

        Predictions of saved checkpoints are kept. Nothing depends on the files, so training
        continues without those that the disk refuses.
        """
        step, state = self.progress.step, self.state
        steps = [item.step for item in self.saved]
        if self.checkpointer.pending_step is not None:
            steps.append(self.checkpointer.pending_step)
        with self.warn_of_refusal("samples"):
            self.samples.write(step, predictions, state.data.validation, metric=state.plan.metric)
        with self.warn_of_refusal("predictions"):
            return write_predictions(self.job.folder, step, predictions, keep=steps)
        return None

    @contextlib.contextmanager
    def warn_of_refusal(self, name: str) -> Iterator[None]:
        """Warn if the disk refuses a file that training does not need."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            message = f"the {name} of step {self.progress.step} could not be written: {reason}"
            self.events.write("warning", message=message)

    def write_evaluation(self, values: dict[str, float], previews: list[dict[str, Any]]) -> None:
        """Write the event and a line."""
        plan, progress = self.state.plan, self.progress
        self.events.write(
            "evaluation",
            step=progress.step,
            epoch=round(progress.epoch, 4),
            metricName=plan.metric,
            values=values,
            previews=previews,
        )
        value, loss = values[f"validation/{plan.metric}"], values["validation/loss"]
        self.say(
            f"epoch {progress.epoch:.2f}  {plan.metric} {value:.4f}  validation loss {loss:.4f}"
        )

    def note_improvement(self, value: float) -> None:
        """Note whether the metric has improved, for early stopping."""
        progress, early_stopping = self.progress, self.settings.validation.early_stopping
        min_delta = early_stopping.min_delta if early_stopping else 0.0
        if progress.best_seen is None or self.improvement(value, progress.best_seen) > min_delta:
            progress.best_seen, progress.evaluations_without_gain = value, 0
        else:
            progress.evaluations_without_gain += 1

    def improvement(self, value: float, best: float) -> float:
        """Return by how much ``value`` is better than ``best``."""
        return best - value if self.state.plan.is_smaller_better else value - best

    def maybe_save(self) -> None:
        """Save a checkpoint if it is due or the run ends; a stop may come meanwhile."""
        if self.unevaluated is not None:
            self.complete_unevaluated(*self.unevaluated)
        elif not self.is_save_due():
            return
        else:
            # The order of checkpoints decides which one is best and which ones are removed.
            self.checkpointer.wait()
            self.save(self.complete_save)
        self.is_phase_stale, self.last_save_at = True, self.clock()
        if self.ending is None and self.should_stop():
            self.ending = "Stopped"
        if self.ending is not None:
            self.checkpointer.wait()
        if self.checkpointer.is_refused:
            self.ending = "Stopped"

    def complete_unevaluated(self, pending: PendingCheckpoint, saved: SavedCheckpoint) -> None:
        """Add the evaluation to the checkpoint that was saved before it."""
        self.unevaluated = None
        if self.progress.owes_evaluation:  # a stop interrupted it
            self.complete_save(pending, saved)
            return
        progress, is_evaluated = self.progress, self.evaluated_step == self.progress.step
        best_before = progress.best, progress.best_checkpoint
        pending = replace(
            pending,
            is_best=self.update_best(pending.name, is_evaluated=is_evaluated),
            metrics=progress.metrics if is_evaluated else {},
            predictions=self.predictions if is_evaluated else None,
        )
        try:
            self.events.sync()  # as before a checkpoint: nothing repeats the evaluation's event
            saved = add_evaluation(
                saved,
                progress,
                metrics=pending.metrics,
                is_best=pending.is_best,
                predictions=pending.predictions,
            )
        except OSError as error:
            progress.best, progress.best_checkpoint = best_before
            self.hooks.on_warning(f"{pending.name} is saved again: {error.strerror or error}")
            self.save(self.complete_save)  # which waits for disk space
            return
        self.complete_save(pending, saved)

    def save(self, on_saved: Callable[[PendingCheckpoint, SavedCheckpoint], None]) -> None:
        """Submit a checkpoint of this step to the checkpointer."""
        state, progress, checkpointer = self.state, self.progress, self.checkpointer
        best_before = progress.best, progress.best_checkpoint
        pending = self.collect_checkpoint()
        previous = self.saved[-1] if self.saved else None
        needed_bytes = estimate_bytes(state.model, pending.contents, previous)
        staged = checkpointer.stage(pending.contents, state.device)
        if staged is not None:
            pending = replace(pending, contents=staged.contents)
            # Set here already: events of the writer's thread appear only after the next step.
            if checkpointer.disk_space.has_space(needed_bytes):
                checkpointer.set_phase("Saving", pending.name)

        def complete(saved: SavedCheckpoint | None) -> None:
            if saved is None:
                progress.best, progress.best_checkpoint = best_before
            else:
                on_saved(pending, saved)

        write = partial(
            checkpointer.write_when_space,
            partial(self.write_checkpoint, pending),
            pending.name,
            previous=previous,
            needed_bytes=needed_bytes,
            needed_bytes_without_links=lambda: estimate_bytes(state.model, pending.contents, None),
        )
        checkpointer.submit(pending.contents.step, write, complete, staged)

    def collect_checkpoint(self) -> PendingCheckpoint:
        """Return the checkpoint of this step."""
        state, progress = self.state, self.progress
        name = name_checkpoint(progress.step, state.plan.steps_per_epoch)
        is_evaluated = self.evaluated_step == progress.step
        is_best = self.update_best(name, is_evaluated=is_evaluated)
        contents = collect_contents(
            state.model,
            state.optimizers,
            progress,
            run_document=state.run_document,
            scaler=state.scaler.state_dict() or None,
        )
        if state.is_sharded:
            state.world.announce("save")
            contents = gather_contents(contents, is_kept=True)
        return PendingCheckpoint(
            name=name,
            contents=contents,
            metrics=progress.metrics if is_evaluated else {},
            is_best=is_best,
            predictions=self.predictions if is_evaluated else None,
            is_unevaluated=progress.owes_evaluation,
        )

    def write_checkpoint(
        self, pending: PendingCheckpoint, previous: SavedCheckpoint | None
    ) -> SavedCheckpoint:
        """Write a checkpoint; called by the thread that writes."""
        self.checkpointer.set_phase("Saving", pending.name)
        # After loss of power, training resumes here and never repeats the events before it.
        self.events.sync()
        with explain_out_of_memory("saving", "training.mode 'lora', a smaller model"):
            return save_checkpoint(
                self.job.folder,
                pending.name,
                self.state.model,
                pending.contents,
                metrics=pending.metrics,
                is_best=pending.is_best,
                previous=previous,
                predictions=pending.predictions,
                is_unevaluated=pending.is_unevaluated,
            )

    def update_best(self, name: str, *, is_evaluated: bool) -> bool:
        """Return whether this checkpoint is the best so far, and note it in the progress.

        Without held-out data the newest checkpoint counts as the best.
        """
        plan, progress = self.state.plan, self.progress
        is_best = not plan.validation_samples
        if is_evaluated:
            value = progress.metrics[f"validation/{plan.metric}"]
            is_best = progress.best is None or self.improvement(value, progress.best) > 0
            if is_best:
                progress.best = value
        if is_best:
            progress.best_checkpoint = name
        return is_best

    def complete_save(self, pending: PendingCheckpoint, saved: SavedCheckpoint) -> None:
        """Write the event of a proven checkpoint, and remove those that need not be kept."""
        self.events.write(
            "checkpoint",
            checkpoint=saved.name,
            step=pending.contents.step,
            epoch=int(pending.contents.epoch),
            folder=str(saved.folder),
            metrics=pending.metrics,
            isBest=pending.is_best,
        )
        self.say(f"saved {saved.name}{', the best so far' if pending.is_best else ''}")
        settings, best = self.settings.checkpoint, self.progress.best_checkpoint
        all_saved = [*self.saved, saved]
        self.saved = select_kept(
            all_saved, keep=settings.keep, keep_best=settings.keep_best, best=best
        )
        if superseded := [item for item in all_saved if item not in self.saved]:
            self.checkpointer.remove(partial(remove_checkpoints, superseded))
        prune_predictions(self.job.folder, keep=[item.step for item in self.saved])

    def describe_ending(self) -> str:
        """Return the message that goes with ``ending``."""
        step, plan = self.progress.step, self.state.plan
        early_stopping = self.settings.validation.early_stopping
        if self.ending == "TimeLimit":
            limit = f"timeLimitMinutes {self.limit_minutes:g}"
            return f"{limit} reached after step {step} of {plan.total_steps}"
        if self.ending == "EarlyStopped" and early_stopping:
            return f"{plan.metric} did not improve for {early_stopping.patience} evaluations"
        if self.ending == "Stopped" and self.checkpointer.is_refused:
            return f"stopped after step {step}; there was no disk space to save it"
        if self.ending == "Stopped":
            return f"stopped after step {step} of {plan.total_steps}"
        return f"{plan.total_steps} steps"

    def describe_divergence(self, error: "NotFinite", indices: list[int]) -> Diverged:
        """Return the error for a loss or gradient that is not finite, once saving is complete."""
        self.checkpointer.wait()
        resumed_from = self.job.resume.name if self.job.resume else None
        last_good = self.saved[-1].name if self.saved else resumed_from
        return Diverged(
            f"{error} at step {self.progress.step + 1}, with samples "
            f"{format_names(name_samples(self.state, indices))}; the last good checkpoint is "
            f"{last_good or 'none yet'}; try: a lower hyperparameters.learningRate than "
            f"{self.settings.hyperparameters.learning_rate:g} or a smaller optimizer.maxGradNorm"
        )


def name_metrics(values: dict[str, float]) -> dict[str, float]:
    """Return an evaluation's values under the names that they have in events and checkpoints."""
    return {f"validation/{name}": round(value, 6) for name, value in values.items()}


def limit_evaluation_batch(job: Job, state: TrainState, warn: Callable[[str], None]) -> BatchLimit:
    """Return how many samples to evaluate at once, no more than found before.

    After the kernel killed an attempt, an evaluation takes no more samples at once than a step.
    """
    limits = (state.progress.evaluation_batch_limit, job.run.status.micro_batch_limit)
    return BatchLimit(min(limit for limit in (MAX_BATCH, *limits) if limit), warn)


def choose_evaluation_settings(job: Job, state: TrainState) -> dict[str, Any]:
    """Return what ``measure`` is called with on every rank."""
    return {
        "count": state.plan.validation_samples,
        "losses": state.validation_losses,
        "generation": state.generation,
        "seed": job.flow.model.evaluation.seed,
        "device": state.device,
        # As in training, see ``estimate_memory``. Accelerators report that memory ran out.
        "measures_memory": state.device.type == "cpu"
        and not job.flow.is_tiny
        and not state.plan.compile
        # As many as a step takes fit, and measuring them would take longer than evaluating them.
        and state.plan.validation_samples > state.plan.micro_batch_size,
        "world": state.world,
        "form": state.answer_form,
    }


class BatchOrder:
    """The samples of every step: a function of seed and step."""

    def __init__(self, flow: ResolvedFlow, state: TrainState):
        self.flow, self.state = flow, state
        self.mixture = make_mixture(flow, state.data.train)
        self.epochs: dict[int, list[list[int]]] = {}  # the batches of this epoch and the next

    def select(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch and the sample indices of a step."""
        plan = self.state.plan
        epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
        if epoch not in self.epochs:
            self.epochs = {at: batches for at, batches in self.epochs.items() if at == epoch - 1}
            self.epochs[epoch] = epoch_batches(
                self.state.lengths,
                batch_size=plan.batch_size,
                seed=self.flow.settings.seed,
                epoch=epoch,
                shuffle=self.flow.dataset.shuffle,
                drawn=None if self.mixture is None else self.mixture.draw_epoch(epoch),
            )
        return epoch, self.epochs[epoch][step_in_epoch]


def name_checkpoint(step: int, steps_per_epoch: int) -> str:
    """Return the name of the checkpoint after ``step``: by its epoch if that is complete."""
    epoch, remainder = divmod(step, steps_per_epoch)
    return f"step-{step}" if remainder else f"epoch-{epoch}"


def enforce_memory_estimate(
    state: TrainState, settings: ModelSettings, events: EventWriter, warn: Callable[[str], None]
) -> None:
    """Refuse or warn as estimated, then try the largest micro-batch, so that it fails now or never.

    Raises:
        OutOfMemory: training would need more memory than there is.
    """
    estimate = state.memory_estimate
    if estimate is None:
        return
    if estimate.verdict == "Deny":
        raise OutOfMemory(
            f"{format_bytes(estimate.peak_bytes)} of memory would be needed. {estimate.reason}"
        )
    if estimate.verdict == "Warn":
        warn(f"{format_bytes(estimate.peak_bytes)} of memory will be needed. {estimate.reason}")
    if not state.has_memory_trial:
        return
    with keep_random_states(state.device):
        largest = [state.longest_index] * state.plan.micro_batch_size
        compute_gradients(state, largest, 0, settings, events)
    clear_gradients(state)


def compute_gradients(
    state: TrainState, indices: list[int], epoch: int, settings: ModelSettings, events: EventWriter
) -> float:
    """Compute the gradients of the mean loss over all label tokens of the batch; return the loss.

    May shrink the plan's micro-batch.
    """
    while True:
        size = state.plan.micro_batch_size
        try:
            return accumulate_gradients(state, indices, epoch, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # With sharded weights, the other ranks wait within the step.
            if settings.on_out_of_memory == "fail" or size == 1 or state.is_sharded:
                raise OutOfMemory(
                    f"out of memory while training with microBatchSize {size}; try: a smaller "
                    "hyperparameters.microBatchSize, onOutOfMemory 'shrink', training.mode 'lora', "
                    f"a smaller model: {first_line(error)}"
                ) from error
        # Not inside the handler: until the error is released, its traceback keeps tensors alive.
        clear_gradients(state)
        shrink_micro_batch(state, size // 2, events)


def shrink_micro_batch(state: TrainState, size: int, events: EventWriter) -> None:
    """Continue with a smaller micro-batch and the same batch, in resumed attempts as well."""
    before, step = state.plan.micro_batch_size, state.progress.step + 1
    return_memory(state.device)
    # ``runyard.cli.resources.reproduce`` recognizes these words in the plan.
    reason = f"{before} was too much for the memory at step {step}"
    state.plan = with_micro_batch(state.plan, size, reason)
    state.progress.micro_batch_limit = size
    state.run_document["status"]["plan"] = state.plan.document
    problem = f"out of memory with microBatchSize {before} at step {step}"
    message = f"{problem}; continuing with {size} at the same batch size"
    events.write("plan", plan=state.plan.document)
    events.write("warning", message=message)


def accumulate_gradients(
    state: TrainState, indices: list[int], epoch: int, micro_batch_size: int
) -> float:
    """Compute the gradients of the batch, with a share on each rank; return the mean loss.

    Raises:
        NotFinite: the loss is not a finite number, and it is not scaled.
    """
    share = state.world.select(indices)
    if state.is_sharded:
        loss = run_sharded_micro_batches(state, indices, epoch, micro_batch_size)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss is {loss}")
        return loss
    work = partial(run_micro_batches, state, share, epoch, micro_batch_size)
    loss = state.world.combine(work, state.parameters)
    if not math.isfinite(loss) and not state.scaler.is_enabled():
        raise NotFinite(f"the loss is {loss}")
    return loss


def run_micro_batches(
    state: TrainState, indices: list[int], epoch: int, micro_batch_size: int
) -> tuple[float, int]:
    """Run forward and backward for each micro-batch.

    Returns the mean loss per label token, and the number of these tokens.
    """
    micro_batches = split(indices, micro_batch_size)
    # Padded rows are (B, T); packed, one row (1, T) holds all samples. Labels are (N,).
    batches = [state.loader.load(micro_batch, epoch) for micro_batch in micro_batches]
    prepare_next(state, micro_batch_size)
    if not batches:  # a rank may have no share of a short batch, and its scaler still takes a step
        state.scaler.scale(torch.zeros((), device=state.device))
    labels = sum(batch.label_count for batch in batches)
    tokens = max(1, labels)
    total = 0.0
    for batch in batches:
        # Sums over label tokens, so that micro-batches add up to the mean over the whole batch.
        loss = state.losses(batch.to(state.device)) / tokens  # ()
        # With everything frozen but the vision encoder, a batch of text only trains nothing.
        if loss.requires_grad:
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    return total, labels


def split(indices: list[int], size: int) -> list[list[int]]:
    """Return the samples in micro-batches of this size."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def prepare_next(state: TrainState, micro_batch_size: int) -> None:
    """Have the batches of the next step prepared, if batches are prepared ahead."""
    if state.next_batch is not None:
        epoch, indices = state.next_batch
        share = state.world.select(indices)
        state.loader.prepare(split(share, micro_batch_size), epoch)


def run_sharded_micro_batches(
    state: TrainState, indices: list[int], epoch: int, micro_batch_size: int
) -> float:
    """Run forward and backward with sharded weights; return the mean loss over all ranks.

    The gradients are summed by the backward pass, so each loss is divided by the tokens of all
    ranks before. All ranks run as many micro-batches, since they gather weights together; one
    without samples left runs a sample that does not count.
    """
    world, share = state.world, state.world.select(indices)
    count = math.ceil(math.ceil(len(indices) / world.size) / micro_batch_size)
    starts = [number * micro_batch_size for number in range(count)]
    micro_batches = [share[start : start + micro_batch_size] for start in starts]
    batches = [state.loader.load(each or indices[:1], epoch) for each in micro_batches]
    prepare_next(state, micro_batch_size)
    weights = [1.0 if each else 0.0 for each in micro_batches]
    labels = sum(
        batch.label_count for batch, weight in zip(batches, weights, strict=True) if weight
    )
    tokens = max(1.0, world.sum(labels)[0])
    total = 0.0
    for batch, weight in zip(batches, weights, strict=True):
        loss = state.losses(batch.to(state.device)) * (weight / tokens)  # ()
        loss.backward()
        total += float(loss.detach())
    return world.sum(total)[0]


def begin_step(
    flow: ResolvedFlow, state: TrainState, order: BatchOrder
) -> tuple[int, list[int], float]:
    """Seed dropout and set the learning rates for the next step.

    Returns its epoch, the sample indices of its batch, and the learning rate.
    """
    step, plan = state.progress.step, state.plan
    state.world.beat.begin_step(step)
    state.loader.begin_step()
    epoch, indices = order.select(step)
    state.next_batch = None
    if state.loader.is_preparing and step + 1 < plan.total_steps:
        state.next_batch = order.select(step + 1)
    state.world.seed(flow.settings.seed, step)
    schedule = flow.model.hyperparameters.schedule
    factor = rate_factor(step, total=plan.total_steps, warmup=plan.warmup_steps, schedule=schedule)
    return epoch, indices, set_rates(state.optimizers, factor)


def update_weights(state: TrainState, loss: float, max_grad_norm: float | None) -> float:
    """Take the optimizer step, or skip it after a scaled loss that is not finite; return the norm.

    Raises:
        NotFinite: the gradient is not finite, and the loss is not scaled.
    """
    if math.isfinite(loss):
        return optimizer_step(state, max_grad_norm)
    skip_step(state.scaler)
    clear_gradients(state)
    return math.nan


def optimizer_step(state: TrainState, max_grad_norm: float | None) -> float:
    """Clip the gradients and let the optimizers take a step; return the norm before clipping.

    With a scaled loss, the step is skipped if the norm is not finite.

    Raises:
        NotFinite: the gradient is not finite, and the loss is not scaled.
    """
    is_scaled = state.scaler.is_enabled()
    if is_scaled:
        unscale(state.scaler, state.optimizers)
    limit = math.inf if max_grad_norm is None else max_grad_norm
    if state.rounded_steps is not None:
        return take_rounded_step(state, state.rounded_steps, limit)
    total = torch.nn.utils.clip_grad_norm_(state.parameters, limit)  # () over all parameters
    norm = float(gather_tensor(total) if state.is_sharded else total)
    if not is_scaled and not math.isfinite(norm):
        raise NotFinite(f"the gradient is {norm}")
    if is_scaled:
        take_scaled_step(state.scaler, state.optimizers, norm=norm)
    else:
        for optimizer in state.optimizers:
            optimizer.step()
    clear_gradients(state)
    return norm


def take_rounded_step(state: TrainState, rounded_steps: RoundedSteps, limit: float) -> float:
    """Take an optimizer step with weights in bfloat16; return the norm before clipping.

    Raises:
        NotFinite: the gradient is not finite.
    """
    norm = measure_norm(state.parameters)
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient is {norm}")
    scale = get_clip_scale(norm, limit)
    rounded_steps.take(state.optimizers, step=state.progress.step, scale=scale)
    clear_gradients(state)
    return norm


class NotFinite(Exception):
    """A loss or a gradient that is not a finite number."""


def name_samples(state: TrainState, indices: list[int]) -> list[str]:
    """Return the names of training samples: the image's file name, or the index."""
    return [state.data.train[index].filename or f"#{index}" for index in indices]


def clear_gradients(state: TrainState) -> None:
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def explain_out_of_memory(activity: str, suggestions: str) -> Iterator[None]:
    """Raise ``OutOfMemory`` with the activity and what to try when the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory while {activity}; try: {suggestions}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
