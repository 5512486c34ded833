"""The ranks that do not lead: each takes part in steps and evaluations until rank 0 ends.

A follower makes the same plan, reads the same checkpoint and computes the same weights as rank 0.
It decides nothing, and writes no file that others read.
"""

import contextlib

from runyard.rundir import EventWriter
from runyard.trainer.checkpoints.checkpoint import collect_contents
from runyard.trainer.data.cache import Hooks
from runyard.trainer.errors import StopRequested
from runyard.trainer.evaluation.batches import BatchLimit
from runyard.trainer.evaluation.evaluation import EvaluationOutOfMemory, measure
from runyard.trainer.plan import Hardware
from runyard.trainer.prepare import Job, TrainState, prepare
from runyard.trainer.sharding import gather_contents
from runyard.trainer.train import (
    BatchOrder,
    NotFinite,
    begin_step,
    choose_evaluation_settings,
    compute_gradients,
    limit_evaluation_batch,
    update_weights,
)


def follow(job: Job, machine: Hardware, events: EventWriter) -> None:
    """Train until rank 0 ends. ``events`` are this rank's own.

    Raises:
        PeerLost: another rank is gone.
        TrainingFailed: the flow or the data cannot be trained, which rank 0 reports.
    """
    state = prepare(job, machine, hooks=Hooks())
    order = BatchOrder(job.flow, state)
    limit = limit_evaluation_batch(
        job, state, lambda message: events.write("warning", message=message)
    )
    while True:
        match state.world.receive():
            case "step":
                try:
                    take_step(job, state, order, events)
                except NotFinite:  # rank 0 has found the same number, and reports it
                    return
            case "evaluate":
                measure_share(job, state, limit)
            case "save":
                contents = collect_contents(
                    state.model, state.optimizers, state.progress, run_document={}
                )
                gather_contents(contents, is_kept=False)
            case "end":
                state.loader.close()
                return


def take_step(job: Job, state: TrainState, order: BatchOrder, events: EventWriter) -> None:
    """Take a step with a share of its batch."""
    settings = job.flow.model
    epoch, indices, _ = begin_step(job.flow, state, order)
    loss = compute_gradients(state, indices, epoch, settings, events)
    update_weights(state, loss, settings.hyperparameters.optimizer.max_grad_norm)
    state.loader.end_step()
    state.progress.step += 1


def measure_share(job: Job, state: TrainState, limit: BatchLimit) -> None:
    """Measure a share of the held-out samples; rank 0 handles whatever prevents it."""

    def check_canceled() -> None:
        if state.world.is_canceled():
            raise StopRequested

    state.loader.settle()
    with state.gather_weights(), contextlib.suppress(StopRequested, EvaluationOutOfMemory):
        measure(
            state.model.module,
            state.model.processor.tokenizer,
            state.validation,
            check_cancelled=check_canceled,
            limit=limit,
            **choose_evaluation_settings(job, state),
        )
