"""Whether a training has learned anything, and what to say if not: pure functions.

A run that ends as planned is Succeeded, whatever it has learned. So its best metric is compared
with what needs no learning: the baseline of constant answers or, for the loss, the model before the
first step. If it is not better, the run has a finding with both numbers, a likely cause, and three
settings to change.
"""

import math
from dataclasses import dataclass

from runyard.flows import ResolvedFlow
from runyard.flows.resolved_flow import get_usual_rate
from runyard.flows.tiny import describe_tiny_images, suggest_base_model
from runyard.trainer.plan import Plan
from vi.api.responses import RunFinding, RunSuggestion

NOTHING_LEARNED = "NothingLearned"
LOSS = "loss"
# Shares of right answers, of which the best of several evaluations may exceed the baseline by luck.
COUNTED = ("exactMatch", "normalizedMatch")
STANDARD_ERRORS = 2.0
MIN_SHARE_OF_LOSS = 0.01
SUGGESTIONS = 3
FEW_STEPS = 300
FEW_SAMPLES = 100
LOW_RATE = 20  # how many times below the usual one
MORE_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best value of the metric, and the value that needs no learning.

    ``samples`` were held out. For the loss, ``reference`` is that before the first step.
    """

    metric: str
    best: float
    reference: float
    samples: int
    is_smaller_better: bool = False

    @property
    def margin(self) -> float:
        """By how much a metric must be better to count."""
        if self.metric == LOSS:
            return MIN_SHARE_OF_LOSS * abs(self.reference)
        if self.metric not in COUNTED:
            return 0.0
        # Agresti and Coull's estimate, which is not 0 where the baseline is. Half of what is
        # missing to 1 always counts.
        share = (self.reference * self.samples + 2) / (self.samples + 4)
        error = math.sqrt(share * (1 - share) / (self.samples + 4))
        return min(STANDARD_ERRORS * error, (1 - self.reference) / 2)

    @property
    def gain(self) -> float:
        """By how much the metric is better."""
        gain = self.best - self.reference
        return -gain if self.is_smaller_better else gain

    @property
    def has_learned(self) -> bool:
        return self.gain > self.margin


def summarize(found: Comparison) -> str:
    """Return the finding in a few words, for the message of the run's last condition."""
    other = "before the first step" if found.metric == LOSS else "constant answers"
    return (
        f"nothing was learned (best {found.metric} {found.best:.4g}, {other} {found.reference:.4g})"
    )


def explain_nothing_learned(found: Comparison, flow: ResolvedFlow, plan: Plan) -> RunFinding:
    """Return the finding: both numbers, the likely cause, and what to change."""
    return RunFinding(
        code=NOTHING_LEARNED,
        message=f"nothing was learned: {_compare(found)}; likely because {_find_cause(flow, plan)}",
        suggestions=list_suggestions(flow, plan)[:SUGGESTIONS],
    )


def _compare(found: Comparison) -> str:
    if found.metric == LOSS:
        return (
            f"the best validation loss is {found.best:.4g}, and before the first step it was "
            f"{found.reference:.4g}"
        )
    text = (
        f"the best {found.metric} is {found.best:.4g}, and constant answers, which ignore the "
        f"image, reach {found.reference:.4g}"
    )
    if found.gain > 0:
        text += f" (the difference may be chance with {found.samples:,} held-out samples)"
    return text


def _find_cause(flow: ResolvedFlow, plan: Plan) -> str:
    samples = _get_number(plan, "trainingSamples")
    if flow.is_tiny and not _is_built_in(plan):
        return (
            f"the model is the built-in one ({describe_tiny_images(flow.task)} pixels), which "
            "starts from random weights and cannot recognize writing or small objects"
        )
    rate = flow.model.hyperparameters.learning_rate
    if rate < get_usual_rate(flow) / LOW_RATE:
        return f"the learning rate of {rate:g} is far below the usual {get_usual_rate(flow):g}"
    if plan.total_steps < FEW_STEPS:
        return f"training had only {plan.total_steps:,} steps"
    if samples is not None and samples < FEW_SAMPLES:
        return f"there are only {samples:,} training samples"
    if "vision" in flow.model.training.freeze:
        return (
            "the vision encoder is frozen and does not see what is asked, or the image does not "
            "show it at this size"
        )
    return "the image does not show what is asked at this size, or the learning rate does not fit"


def _is_built_in(plan: Plan) -> bool:
    entry = plan.document.get("dataset", {})
    return bool(entry.get("reason") == "built in")


def _get_number(plan: Plan, name: str) -> int | None:
    value = plan.document.get(name, {}).get("value")
    return value if isinstance(value, int) else None


def list_suggestions(flow: ResolvedFlow, plan: Plan) -> list[RunSuggestion]:
    """Return what to change, the most promising first; at least three."""
    model, images = flow.model, flow.model.images
    numbers, is_small = model.hyperparameters, flow.is_tiny and not _is_built_in(plan)
    found = [suggest_base_model()] if is_small else []
    if "vision" in model.training.freeze:
        found.append(
            RunSuggestion(
                text="train the vision encoder too", setting="vi-model.training.freeze", value=[]
            )
        )
    limit = _get_number(plan, "maxPixels")
    if not flow.is_tiny and limit is not None and images.max_pixels is not None:
        found.append(
            RunSuggestion(
                text="show the model larger images",
                setting="vi-model.images.maxPixels",
                value=2 * limit,
            )
        )
    if flow.dataset.max_samples is not None:
        found.append(
            RunSuggestion(text="train on all samples", setting="vi-dataset.maxSamples", value=None)
        )
    found += [_suggest_more_steps(flow, plan), _suggest_learning_rate(flow)]
    if not found[2:]:
        found.append(
            RunSuggestion(
                text="use smaller batches, so that an epoch has more steps",
                setting="vi-model.hyperparameters.batchSize",
                value=max(1, numbers.batch_size // 2),
            )
        )
    return found


def _suggest_more_steps(flow: ResolvedFlow, plan: Plan) -> RunSuggestion:
    numbers = flow.model.hyperparameters
    if numbers.max_steps is not None and plan.total_steps == numbers.max_steps:
        name, value = "maxSteps", MORE_EPOCHS * numbers.max_steps
    else:
        name, value = "epochs", MORE_EPOCHS * numbers.epochs
    text = "train longer"
    if flow.is_tiny and not _is_built_in(plan):
        text += ", which helps where the answer can be seen in so small an image"
    return RunSuggestion(text=text, setting=f"vi-model.hyperparameters.{name}", value=value)


def _suggest_learning_rate(flow: ResolvedFlow) -> RunSuggestion:
    rate, usual = flow.model.hyperparameters.learning_rate, get_usual_rate(flow)
    text, value = "lower the learning rate", float(f"{rate / 3:.1g}")
    if rate < usual / 2:
        text, value = "raise the learning rate to the usual one", usual
    return RunSuggestion(text=text, setting="vi-model.hyperparameters.learningRate", value=value)
