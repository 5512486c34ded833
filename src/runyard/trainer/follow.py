"""The ranks that do not lead: each takes every step with its share of the batch, until rank 0 ends.

A follower makes the same plan, reads the same checkpoint and computes the same weights as rank 0.
It decides nothing, and writes no file that others read.
"""

from runyard.rundir import EventWriter
from runyard.trainer.data.cache import Hooks
from runyard.trainer.plan import Hardware
from runyard.trainer.prepare import Job, prepare
from runyard.trainer.ranks import TrainingEnded
from runyard.trainer.train import (
    BatchOrder,
    NotFinite,
    begin_step,
    compute_gradients,
    update_weights,
)


def follow(job: Job, machine: Hardware, events: EventWriter) -> None:
    """Train until rank 0 ends. ``events`` are this rank's own.

    Raises:
        PeerLost: another rank is gone.
        TrainingFailed: the flow or the data cannot be trained, which rank 0 reports.
    """
    state, settings = prepare(job, machine, hooks=Hooks()), job.flow.model
    max_grad_norm = settings.hyperparameters.optimizer.max_grad_norm
    order = BatchOrder(job.flow, state)
    try:
        while state.progress.step < state.plan.total_steps:
            epoch, indices, _ = begin_step(job.flow, state, order)
            loss = compute_gradients(state, indices, epoch, settings, events)
            update_weights(state, loss, max_grad_norm)
            state.progress.step += 1
        state.world.combine(lambda: (0.0, 0), state.parameters)
    except (TrainingEnded, NotFinite):  # rank 0 has found the same number, and reports it
        pass
