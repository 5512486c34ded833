"""The ranks that do not lead: each takes every step with its share of the batch, until rank 0 ends.

A follower makes the same plan, reads the same checkpoint and computes the same weights as rank 0.
It decides nothing, and writes no file that others read.
"""

from runyard.rundir import EventWriter
from runyard.trainer.data.cache import Hooks
from runyard.trainer.plan import Hardware
from runyard.trainer.prepare import Job, prepare
from runyard.trainer.ranks import TrainingEnded
from runyard.trainer.steps.optim import rate_factor, set_rates
from runyard.trainer.train import BatchOrder, NotFinite, compute_gradients, optimizer_step


def follow(job: Job, machine: Hardware, events: EventWriter) -> None:
    """Train until rank 0 ends. ``events`` are this rank's own.

    Raises:
        PeerLost: another rank is gone.
        TrainingFailed: the flow or the data cannot be trained, which rank 0 reports.
    """
    state, settings = prepare(job, machine, hooks=Hooks()), job.flow.model
    order, plan, numbers = BatchOrder(job.flow, state), state.plan, settings.hyperparameters
    try:
        while state.progress.step < plan.total_steps:
            step = state.progress.step
            epoch, indices = order.select(step)
            state.world.seed(job.flow.settings.seed, step)
            factor = rate_factor(
                step, total=plan.total_steps, warmup=plan.warmup_steps, schedule=numbers.schedule
            )
            set_rates(state.optimizers, factor)
            compute_gradients(state, indices, epoch, settings, events)
            optimizer_step(state, numbers.optimizer.max_grad_norm)
            state.progress.step += 1
        state.world.combine(lambda: (0.0, 0), state.parameters)
    except (TrainingEnded, NotFinite):  # rank 0 has found the same number, and reports it
        pass
