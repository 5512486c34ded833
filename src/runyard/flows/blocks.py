"""The recipe language, field by field: what a flow may say, within which limits, and what holds when it says nothing.

These structs are the only definition of flow v1. The checks, the JSON Schema for editors and ``docs/flow-reference.md``
are made from them, so each field carries its limits and one line of help here and nowhere else. Names are camelCase on
the wire, except inside ``evaluation``, whose keys are snake_case because the published client reads them so.

A default that depends on other fields (twelve epochs for the tiny preset, three otherwise) is told in words by
``told(..., default=...)``; the value beside it is the ordinary case and ``recipe.resolve`` fills in the right one. What
only the machine can decide stays ``auto`` until the trainer makes its plan.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runyard.flows.families import AUTO, FAMILIES

Auto = Literal["auto"]
Task = Literal["vqa", "phrase-grounding", "freeform"]
Part = Literal["vision", "projector", "language"]
TASKS: tuple[Task, ...] = ("vqa", "phrase-grounding", "freeform")

# The data that every installation has, and what each is for.
BUILT_IN_DATASETS: dict[str, Task] = {
    "digits": "vqa",
    "digits-grounding": "phrase-grounding",
    "digits-both": "phrase-grounding",
}
BOTH_TASKS = "digits-both"  # holds questions besides; a kind of its own would be a word no published client knows
TINY = "tiny"

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=10)]
Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$",  # every id that a server accepts
        extra={"form": "an id of at most 255 letters, digits, dots, dashes and underscores"},
    ),
]
Word = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$",
        extra={"form": "a word of at most 64 letters, digits, dots, dashes, slashes and underscores"},
    ),
]


FamilyName = Annotated[str, Meta(pattern=f"^({'|'.join([AUTO, *FAMILIES])})$", extra={"words": (AUTO, *FAMILIES)})]


def told(text: str, *, default: str | None = None) -> Meta:
    """The help of a field; ``default`` tells in words a default that depends on other fields."""
    return Meta(description=text, extra={"default": default} if default else None)


class Shape(msgspec.Struct, rename="camel", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of every part of a flow: camelCase on the wire, strict, never changed in place."""


class FlowReference(Shape, frozen=True):
    """Which saved flow, and which generation of it, a run was made from. The server writes it."""

    id: Annotated[Id, told("id of the saved flow")]
    generation: Annotated[int, Meta(ge=1, le=2**53), told("generation of the flow that was frozen")]


class Resources(Shape, frozen=True):
    """What a run needs of a machine. Not supported yet: anything but the defaults is rejected when a run is created."""

    accelerators: Annotated[
        Annotated[int, Meta(ge=0, le=1024)] | None, told("accelerators the run needs; not supported yet, so null")
    ] = None
    cpus: Annotated[
        Annotated[float, Meta(gt=0, le=4096)] | None, told("processor cores the run needs; not supported yet, so null")
    ] = None
    memory_gib: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        told("main memory the run needs, in GiB; not supported yet, so null"),
    ] = msgspec.field(name="memoryGiB", default=None)
    workers: Annotated[
        int, Meta(ge=1, le=1024), told("processes that train one model together; not supported yet, so 1")
    ] = 1


class FlowSettings(Shape, frozen=True):
    """How the run as a whole is treated."""

    seed: Annotated[int, Meta(ge=0, le=2**31 - 1), told("start of every random choice: split, order, weights")] = 7
    priority: Annotated[
        int, Meta(ge=-1000, le=1000), told("runs of higher priority start first; equal ones in order of creation")
    ] = 0
    attempts: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        told("tries the run has when the platform is at fault; null takes the deployment's setting"),
    ] = None
    grace_period_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3600)] | None,
        told("time a killed run has to save and stop; null takes the deployment's setting"),
    ] = None
    time_limit_minutes: Annotated[
        Annotated[float, Meta(gt=0, le=525_600)] | None, told("longest training time; null sets no limit")
    ] = None
    resources: Annotated[Resources, told("what the run needs of a machine")] = msgspec.field(default_factory=Resources)
    flow: Annotated[FlowReference | None, told("the saved flow this was made from; the server writes it")] = None


class Augmentation(Shape, frozen=True):
    """How strongly pictures are varied while training; boxes follow the picture. 0 leaves a kind out."""

    brightness: Annotated[Share, told("brightness changed by up to this share")] = 0.0
    contrast: Annotated[Share, told("contrast changed by up to this share")] = 0.0
    noise: Annotated[Share, told("random noise of up to this share of the range of values")] = 0.0
    shift: Annotated[Share, told("moved by up to this share of the side")] = 0.0
    zoom: Annotated[Share, told("enlarged or reduced by up to this share")] = 0.0
    mirror: Annotated[Share, told("probability of swapping left and right")] = 0.0


class DatasetSettings(Shape, frozen=True):
    """Which data the run learns from, and how it is divided."""

    dataset_id: Annotated[
        Id, told("which data", default="the training project's dataset, else the built-in digits")
    ] = "digits"
    dataset_version: Annotated[Id | None, told("a version of the data to pin; null takes the newest")] = None
    project_kind: Annotated[Task, told("the task to learn", default="the dataset's own kind")] = "vqa"
    validation_fraction: Annotated[
        float,
        Meta(ge=0, le=0.9),
        told("share held out for validation, chosen by content and seed, so that adding images moves none across"),
    ] = 0.2
    shuffle: Annotated[bool, told("a new order each epoch, drawn from the seed")] = True
    max_samples: Annotated[Count | None, told("only the first n samples after shuffling, for a quick look")] = None
    augmentation: Annotated[
        Augmentation | None,
        told(
            "how strongly pictures are varied while training",
            default="null; tiny with vqa: shift 0.06, zoom 0.1, and {} for none",
        ),
    ] = None

    @property
    def varies_pictures(self) -> bool:
        """Whether a picture is another one each time it is drawn."""
        return self.augmentation not in (None, Augmentation())


class SystemPromptSettings(Shape, frozen=True):
    """The text put first in every conversation."""

    system_prompt: Annotated[
        str,
        Meta(max_length=20_000),
        told("text put first in every conversation", default="the task's own, which names the form of the answer"),
    ] = ""


class Architecture(Shape, frozen=True):
    """Which model, and where its weights come from."""

    name: Annotated[
        FamilyName,
        told("family of the model, or auto: the weights' own", default="idefics3; auto when weights are given"),
    ] = "idefics3"
    size: Annotated[
        Word,
        told(
            "tiny is built in and trained from scratch; others are names such as 2B",
            default="tiny; the family's usual size when another family is named; auto when weights are given",
        ),
    ] = TINY
    weights: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1024)] | None,
        told(
            "base:NAME of a model folder, a run's checkpoint run:RUN_ID/CHECKPOINT, a hub id, or the absolute path of "
            "a folder inside the setting model_folders; null takes the family's usual"
        ),
    ] = None
    family: Annotated[
        FamilyName | None, told("the true family where name has to be the published client's word for a loader; wins")
    ] = None


class Lora(Shape, frozen=True):
    """The low-rank adapter; without effect while training.mode is full."""

    rank: Annotated[int, Meta(ge=1, le=1024), told("rank of the adapter")] = 16
    alpha: Annotated[float, Meta(gt=0, le=4096), told("scale of the adapter; alpha / rank multiplies it")] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1), told("share of the adapter's inputs dropped while training")] = 0.05
    targets: Annotated[
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(min_length=1, max_length=256)] | Auto,
        told("names of the layers to adapt; auto: all linear layers of the language model"),
    ] = "auto"
    use_dora: Annotated[bool, told("learn length and direction of weights apart (DoRA); slower, often better")] = False
    use_rslora: Annotated[bool, told("scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)")] = False


class LearningRates(Shape, frozen=True):
    """Own learning rates for parts of the model; null takes hyperparameters.learningRate."""

    vision: Annotated[Rate | None, told("learning rate of the vision encoder")] = None
    projector: Annotated[Rate | None, told("learning rate of the projector between vision and language")] = None
    language: Annotated[Rate | None, told("learning rate of the language model")] = None


class Training(Shape, frozen=True):
    """What of the model is trained."""

    mode: Annotated[Literal["lora", "full"], told("a low-rank adapter, or all weights", default="lora; tiny: full")] = (
        "lora"
    )
    lora: Annotated[Lora, told("the adapter; without effect while mode is full")] = msgspec.field(default_factory=Lora)
    freeze: Annotated[
        Annotated[list[Part], Meta(max_length=3)],
        told("parts that stay as they are", default="[vision] with lora, [] with full"),
    ] = []
    learning_rates: Annotated[LearningRates | None, told("own learning rates for parts of the model")] = None


class Quantization(Shape, frozen=True):
    """4-bit base weights; with lora this is QLoRA. Needs the package bitsandbytes."""

    enabled: Annotated[bool, told("load the base weights in 4 bit")] = False
    type: Annotated[Literal["nf4", "fp4"], told("the 4-bit number format")] = "nf4"


class Compute(Shape, frozen=True):
    """How the arithmetic is done; auto is chosen by the trainer and said in the plan."""

    precision_type: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        told("number format of training; auto: bfloat16 where the device does it well, else float32"),
    ] = "auto"
    gradient_checkpointing: Annotated[bool | Auto, told("recompute activations to save memory")] = "auto"
    compile: Annotated[bool | Auto, told("compile the model before training")] = "auto"
    feature_cache: Annotated[
        bool | Auto, told("keep what a frozen vision encoder makes of each picture instead of computing it every epoch")
    ] = "auto"
    attention: Annotated[Literal["auto", "eager", "sdpa", "flash_attention_2"], told("implementation of attention")] = (
        "auto"
    )


Pixels = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Images(Shape, frozen=True):
    """How large pictures may be. A sample is never cut through an image: it is given a smaller one, or left out."""

    min_pixels: Annotated[Pixels | Auto, told("smaller pictures are enlarged; auto: the family's")] = "auto"
    max_pixels: Annotated[Pixels | Auto, told("larger pictures are reduced; auto: the family's")] = "auto"
    patch_budget: Annotated[
        Count | None, told("most tokens of one picture; larger ones are reduced; null sets no limit")
    ] = None


class Schedule(Shape, frozen=True):
    """How the learning rate moves over the run."""

    name: Annotated[Literal["cosine", "linear", "constant", "wsd"], told("shape of the curve after warm-up")] = "cosine"
    warmup_fraction: Annotated[Share, told("share of the steps in which the rate rises from zero")] = 0.03
    min_factor: Annotated[Share, told("the rate at the end, as a share of learningRate")] = 0.1


class Optimizer(Shape, frozen=True):
    """How gradients become steps."""

    name: Annotated[Literal["adamw", "adamw8bit", "muon", "adafactor", "sgd"], told("the rule")] = "adamw"
    weight_decay: Annotated[float, Meta(ge=0, le=10), told("pull of the weights towards zero")] = 0.01
    betas: Annotated[
        tuple[Annotated[float, Meta(ge=0, lt=1)], Annotated[float, Meta(ge=0, lt=1)]],
        told("decay of the running means; muon and sgd take the first as momentum, adafactor uses none"),
    ] = (0.9, 0.999)
    max_grad_norm: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None, told("gradients longer than this are cut; null cuts none")
    ] = 1.0


class Loss(Shape, frozen=True):
    """What the model is blamed for."""

    answers_only: Annotated[bool, told("count the answers' tokens alone, not the questions'")] = True
    label_smoothing: Annotated[float, Meta(ge=0, lt=1), told("share of certainty spread over all tokens")] = 0.0


class Hyperparameters(Shape, frozen=True):
    """How long and how fast the model learns."""

    epochs: Annotated[
        int,
        Meta(ge=1, le=10_000),
        told("passes over the training data", default="3; tiny: 12, with phrase-grounding 6"),
    ] = 3
    max_steps: Annotated[Count | None, told("most optimizer steps; whichever of the two comes first ends the run")] = (
        None
    )
    batch_size: Annotated[
        int, Meta(ge=1, le=65_536), told("samples per optimizer step, over all workers", default="8; tiny: 32")
    ] = 8
    micro_batch_size: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | Auto,
        told("samples per forward pass, a divisor of batchSize; auto: found from memory"),
    ] = "auto"
    learning_rate: Annotated[
        Rate,
        told(
            "the highest learning rate",
            default="2e-4 with lora, 1e-5 with full; tiny: 3e-3, with phrase-grounding 1.2e-3",
        ),
    ] = 2e-4
    schedule: Annotated[
        Schedule, told("how the learning rate moves; tiny with phrase-grounding: linear, 0.05, 0.01")
    ] = msgspec.field(default_factory=Schedule)
    optimizer: Annotated[
        Optimizer, told("how gradients become steps; tiny with phrase-grounding: muon, [0.95, 0.98]")
    ] = msgspec.field(default_factory=Optimizer)
    loss: Annotated[Loss, told("what the model is blamed for")] = msgspec.field(default_factory=Loss)


class Every(Shape, frozen=True):
    """A distance between two checkpoints or evaluations: exactly one of the two."""

    steps: Annotated[Count | None, told("optimizer steps between two")] = None
    minutes: Annotated[Annotated[float, Meta(gt=0, le=525_600)] | None, told("minutes between two")] = None


class Checkpoint(Shape, frozen=True):
    """When the model is saved, and which copies are kept."""

    every: Annotated[Literal["epoch"] | Every, told("epoch, or an object with steps or minutes")] = "epoch"
    keep: Annotated[int, Meta(ge=1, le=10_000), told("how many of the newest checkpoints are kept")] = 3
    keep_best: Annotated[bool, told("keep the best one besides")] = True
    metric: Annotated[Word, told("what best means, such as loss; auto: the task's own metric")] = "auto"
    mode: Annotated[Literal["auto", "min", "max"], told("whether small or large values of it are good")] = "auto"


class EarlyStopping(Shape, frozen=True):
    """End the run when validation stops getting better."""

    patience: Annotated[int, Meta(ge=1, le=10_000), told("evaluations without a gain before the run ends")] = 3
    min_delta: Annotated[float, Meta(ge=0, le=1_000_000), told("a smaller gain counts as none")] = 0.0


class Validation(Shape, frozen=True):
    """When and on how much held-out data the model is measured."""

    every: Annotated[Literal["epoch"] | Every, told("epoch, or an object with steps or minutes")] = "epoch"
    max_samples: Annotated[Count | None, told("most held-out samples measured each time; null takes all")] = 500
    previews: Annotated[
        int, Meta(ge=0, le=1000), told("answers stored beside the truth at each evaluation, to look at")
    ] = 8
    early_stopping: Annotated[EarlyStopping | None, told("end the run when validation stops getting better")] = None


Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]


class Evaluation(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How the finished model generates. The keys are snake_case; null leaves one to the model."""

    temperature: Annotated[float, Meta(ge=0, le=2), told("how freely tokens are drawn when do_sample is on")] = 1.0
    top_k: Annotated[int, Meta(ge=1, le=1000), told("only the k likeliest tokens are drawn from")] = 50
    top_p: Annotated[float, Meta(gt=0, le=1), told("only the likeliest tokens of this joint share are drawn from")] = (
        1.0
    )
    repetition_penalty: Annotated[float, Meta(gt=0, le=2), told("above 1, tokens already said become unlikelier")] = (
        1.05
    )
    max_new_tokens: Annotated[int, Meta(ge=1, le=4096), told("longest answer, in tokens")] = 1024
    do_sample: Annotated[bool, told("draw tokens at random instead of taking the likeliest")] = False
    seed: Annotated[int, Meta(ge=-1, le=2**31 - 1), told("start of the random draw; -1 takes a new one each time")] = 0
    stop_strings: Annotated[StopText | list[StopText] | None, told("texts that end an answer")] = None
    pad_token_id: Annotated[Token | None, told("token that fills up shorter answers")] = None
    bos_token_id: Annotated[Token | None, told("token that begins a text")] = None
    eos_token_id: Annotated[Token | list[Token] | None, told("token that ends an answer")] = None


class ModelSettings(Shape, frozen=True):
    """Which model is trained, and how."""

    architecture: Annotated[Architecture, told("which model")] = msgspec.field(default_factory=Architecture)
    training: Annotated[Training, told("what of it is trained")] = msgspec.field(default_factory=Training)
    quantization: Annotated[Quantization, told("4-bit base weights")] = msgspec.field(default_factory=Quantization)
    compute: Annotated[Compute, told("how the arithmetic is done")] = msgspec.field(default_factory=Compute)
    images: Annotated[Images, told("how large pictures may be")] = msgspec.field(default_factory=Images)
    packing: Annotated[bool | Auto, told("several samples in one sequence, with exact masks")] = "auto"
    hyperparameters: Annotated[Hyperparameters, told("how long and how fast it learns")] = msgspec.field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, told("when it is saved")] = msgspec.field(default_factory=Checkpoint)
    validation: Annotated[Validation, told("when it is measured")] = msgspec.field(default_factory=Validation)
    evaluation: Annotated[Evaluation, told("how the finished model generates")] = msgspec.field(
        default_factory=Evaluation
    )
    on_out_of_memory: Annotated[
        Literal["fail", "shrink"],
        told("fail ends the run; shrink halves the micro-batch at equal global batch and goes on"),
    ] = "fail"


# The block types. A block is known by a fragment of its name, because that is how the published client finds them.
FRAGMENTS = {"system-prompt": "vi-system-prompt", "dataset": "vi-dataset", "model": "vi-model"}
BLOCKS: dict[str, type[Shape]] = {
    "vi-system-prompt": SystemPromptSettings,
    "vi-dataset": DatasetSettings,
    "vi-model": ModelSettings,
}


class Block(Shape, frozen=True):
    """One element of a flow. Which settings it may have depends on what its name contains."""

    block: Annotated[
        str,
        Meta(min_length=1, max_length=100, extra={"form": "vi-system-prompt, vi-dataset or vi-model"}),
        told("which type of block it is; what the name contains decides"),
    ]
    settings: Annotated[dict[str, Any], told("the block's settings", default="{}")] = {}
    style: Annotated[dict[str, Any], told("for drawing only; may hold anything", default="{}")] = {}


class FlowShape(Shape, frozen=True):
    """A flow as it is written down. Every field may be left out."""

    name: Annotated[str, Meta(max_length=200), told("what people call the recipe", default="Untitled")] = "Untitled"
    schema: Annotated[Literal["v1"], told("version of the recipe language", default="v1")] = "v1"
    training_project: Annotated[Id | None, told("the training project, or the dataset, the runs belong to")] = None
    tolerations: Annotated[
        dict[str, list[Annotated[str, Meta(max_length=256)]]],
        told("where it may run: each key names a capacity label, any listed value will do", default="{}"),
    ] = {}
    settings: Annotated[FlowSettings, told("how the run as a whole is treated", default="{}")] = msgspec.field(
        default_factory=FlowSettings
    )
    blocks: Annotated[
        list[Block],
        Meta(max_length=100),
        told("the recipe's elements, each type at most once; an empty list is complete", default="[]"),
    ] = []
