"""The fields of a flow: their types, limits, defaults and help texts.

These structs are the only definition of flow v1. The validators, the JSON Schema for editors and
``docs/flow-reference.md`` are generated from them, so each field has its limits and one line of
help only here. Names are camelCase on the wire, except inside ``evaluation``, whose keys are
snake_case as the published client expects.

A default that depends on other fields (twelve epochs for the tiny model, three otherwise) is
described in words by ``help_text(..., default=...)``. The value in the struct is the usual case;
``resolved_flow.fill_defaults`` sets the right one. What only the machine can decide stays ``auto``
until the trainer makes its plan.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.resources import MOST_WORKERS

Auto = Literal["auto"]
Task = Literal["vqa", "phrase-grounding", "freeform"]
Part = Literal["vision", "projector", "language"]
AnswerFormName = Literal["json", "text", "native"]
TASKS: tuple[Task, ...] = ("vqa", "phrase-grounding", "freeform")

# The datasets of every installation, and their tasks.
BUILT_IN_DATASETS: dict[str, Task] = {
    "digits": "vqa",
    "digits-grounding": "phrase-grounding",
    "digits-both": "phrase-grounding",
}
# Also has questions; the published client would not know a kind of its own.
BOTH_TASKS = "digits-both"
TINY = "tiny"

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=10)]
Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$",  # every id that the server accepts
        extra={"form": "an id of at most 255 letters, digits, dots, dashes and underscores"},
    ),
]
Word = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$",
        extra={
            "form": "a word of at most 64 letters, digits, dots, dashes, slashes and underscores"
        },
    ),
]


FamilyName = Annotated[
    str, Meta(pattern=f"^({'|'.join([AUTO, *FAMILIES])})$", extra={"words": (AUTO, *FAMILIES)})
]


def help_text(text: str, *, default: str | None = None) -> Meta:
    """Return a field's help; ``default`` describes a default that depends on other fields."""
    return Meta(description=text, extra={"default": default} if default else None)


class Shape(msgspec.Struct, rename="camel", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of every part of a flow: camelCase on the wire, strict, immutable."""


class FlowReference(Shape, frozen=True):
    """The saved flow, and its generation, that a run was made from. Written by the server."""

    id: Annotated[Id, help_text("id of the saved flow")]
    generation: Annotated[
        int, Meta(ge=1, le=2**53), help_text("generation of the flow that was frozen")
    ]


class Resources(Shape, frozen=True):
    """The resources a run needs, all of one machine. Cores and memory are not supported yet."""

    accelerators: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_WORKERS)] | None,
        help_text(
            "accelerators of one machine that train one model together, a process for each; null "
            "takes the one of the run's slot, or the processor where the machine has none"
        ),
    ] = None
    cpus: Annotated[
        Annotated[float, Meta(gt=0, le=4096)] | None,
        help_text("number of processor cores; not supported yet, must be null"),
    ] = None
    memory_gib: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        help_text("main memory in GiB; not supported yet, must be null"),
    ] = msgspec.field(name="memoryGiB", default=None)
    workers: Annotated[
        int,
        Meta(ge=1, le=MOST_WORKERS),
        help_text(
            "processes of one machine that train one model together, each with a share of every "
            "batch; accelerators sets their number too"
        ),
    ] = 1

    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"],
        help_text(
            'how several processes train: "ddp" keeps the whole model in each, "fsdp" a part of '
            "every weight and optimizer state; auto takes fsdp where only that fits into memory"
        ),
    ] = "auto"

    @property
    def ranks(self) -> int:
        """The number of processes that train the model."""
        return max(self.accelerators or 1, self.workers)


class FlowSettings(Shape, frozen=True):
    """Settings of the run as a whole."""

    seed: Annotated[
        int,
        Meta(ge=0, le=2**31 - 1),
        help_text("random seed of the split, the sample order and new weights"),
    ] = 7
    priority: Annotated[
        int,
        Meta(ge=-1000, le=1000),
        help_text("priority; runs of higher priority start first, equal ones in order of creation"),
    ] = 0
    attempts: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        help_text(
            "maximum attempts after infrastructure failures; null takes the deployment's setting"
        ),
    ] = None
    grace_period_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3600)] | None,
        help_text("time for a killed run to save and stop; null takes the deployment's setting"),
    ] = None
    time_limit_minutes: Annotated[
        Annotated[float, Meta(gt=0, le=525_600)] | None,
        help_text("maximum training time; null sets no limit"),
    ] = None
    resources: Annotated[Resources, help_text("resources the run needs")] = msgspec.field(
        default_factory=Resources
    )
    flow: Annotated[
        FlowReference | None, help_text("the saved flow this was made from; written by the server")
    ] = None


class Augmentation(Shape, frozen=True):
    """Strength of the random image augmentations; boxes are transformed too. 0 disables one."""

    brightness: Annotated[Share, help_text("maximum relative change of brightness")] = 0.0
    contrast: Annotated[Share, help_text("maximum relative change of contrast")] = 0.0
    noise: Annotated[Share, help_text("maximum random noise, as a fraction of the value range")] = (
        0.0
    )
    shift: Annotated[Share, help_text("maximum shift, as a fraction of the side")] = 0.0
    zoom: Annotated[Share, help_text("maximum relative zoom in or out")] = 0.0
    mirror: Annotated[Share, help_text("probability of a horizontal flip")] = 0.0


Weight = Annotated[float, Meta(gt=0, le=1e9)]


class MixedDataset(Shape, frozen=True):
    """A further dataset of a mixture."""

    dataset_id: Annotated[Id, help_text("id of the dataset")]
    dataset_version: Annotated[
        Id | None, help_text("dataset version to use; null takes the newest")
    ] = None
    weight: Annotated[Weight | None, help_text("its weight in the mixture")] = None


class ValidationDataset(Shape, frozen=True):
    """A dataset that is held out as a whole."""

    dataset_id: Annotated[Id, help_text("id of the dataset")]
    dataset_version: Annotated[
        Id | None, help_text("dataset version to use; null takes the newest")
    ] = None


class DatasetSettings(Shape, frozen=True):
    """The training data, and its split."""

    dataset_id: Annotated[
        Id,
        help_text(
            "id of the dataset", default="the training project's dataset, else the built-in digits"
        ),
    ] = "digits"
    dataset_version: Annotated[
        Id | None, help_text("dataset version to use; null takes the newest")
    ] = None
    weight: Annotated[
        Weight | None,
        help_text(
            "weight of the dataset in a mixture: its share of the samples in an epoch is its "
            "weight over the sum of all; null for every dataset uses each sample once per epoch"
        ),
    ] = None
    mixture: Annotated[
        Annotated[list[MixedDataset], Meta(max_length=15)],
        help_text("further datasets to train on, of the same kind"),
    ] = msgspec.field(default_factory=list)
    validation_dataset: Annotated[
        ValidationDataset | None,
        help_text(
            "dataset that is held out as a whole; then nothing else is held out, and "
            "validationFraction is not used"
        ),
    ] = None
    project_kind: Annotated[Task, help_text("task to learn", default="the dataset's own kind")] = (
        "vqa"
    )
    validation_fraction: Annotated[
        float,
        Meta(ge=0, le=0.9),
        help_text(
            "fraction held out for validation, split by content and seed, so that added images "
            "move none across; of data with its own split only 0 counts: nothing is held out"
        ),
    ] = 0.2
    shuffle: Annotated[bool, help_text("a new order each epoch, drawn from the seed")] = True
    max_samples: Annotated[
        Count | None, help_text("use only the first n samples after shuffling, for a quick trial")
    ] = None
    augmentation: Annotated[
        Augmentation | None,
        help_text(
            "random image augmentations during training",
            default="null; tiny with vqa: shift 0.06, zoom 0.1, and {} for none",
        ),
    ] = None

    @property
    def holds_out(self) -> bool:
        """Whether some samples are held out for validation."""
        return self.validation_dataset is not None or self.validation_fraction > 0

    @property
    def varies_images(self) -> bool:
        """Whether an image differs each time it is loaded."""
        return self.augmentation not in (None, Augmentation())


class SystemPromptSettings(Shape, frozen=True):
    """The system prompt."""

    system_prompt: Annotated[
        str,
        Meta(max_length=20_000),
        help_text(
            "text at the start of every conversation",
            default="the task's own, which defines the form of the answer",
        ),
    ] = ""


class Architecture(Shape, frozen=True):
    """The model, and the source of its weights."""

    name: Annotated[
        FamilyName,
        help_text(
            "model family; auto: the family of the weights",
            default="idefics3; auto when weights are given",
        ),
    ] = "idefics3"
    size: Annotated[
        Word,
        help_text(
            "model size; tiny is built in and trained from scratch, others are names such as 2B",
            default="tiny; the family's usual size when another family is named; auto when weights "
            "are given",
        ),
    ] = TINY
    weights: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1024)] | None,
        help_text(
            "base:NAME of a model folder, a run's checkpoint run:RUN_ID/CHECKPOINT, a hub id, or "
            "the absolute path of a folder inside the setting model_folders; of an adapter, lora "
            "trains its weights further and full the merged ones; null takes the family's usual "
            "weights"
        ),
    ] = None
    family: Annotated[
        FamilyName | None,
        help_text("actual family if name is the loader of the published client; overrides name"),
    ] = None


class Lora(Shape, frozen=True):
    """The low-rank adapter; no effect if training.mode is full."""

    rank: Annotated[int, Meta(ge=1, le=1024), help_text("rank of the adapter")] = 16
    alpha: Annotated[
        float, Meta(gt=0, le=4096), help_text("alpha / rank scales the output of the adapter")
    ] = 32.0
    dropout: Annotated[
        float, Meta(ge=0, lt=1), help_text("dropout of the adapter's inputs during training")
    ] = 0.05
    targets: Annotated[
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=256)]],
            Meta(min_length=1, max_length=256),
        ]
        | Auto,
        help_text("names of the layers to adapt; auto: all linear layers of the language model"),
    ] = "auto"
    use_dora: Annotated[
        bool,
        help_text(
            "train magnitude and direction of weights separately (DoRA); slower, often better"
        ),
    ] = False
    use_rslora: Annotated[
        bool, help_text("scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)")
    ] = False
    train_projector: Annotated[
        bool, help_text("also train all weights of the projector, which are saved with the adapter")
    ] = False


class LearningRates(Shape, frozen=True):
    """Learning rates of parts of the model; null takes hyperparameters.learningRate."""

    vision: Annotated[Rate | None, help_text("learning rate of the vision encoder")] = None
    projector: Annotated[
        Rate | None, help_text("learning rate of the projector between vision and language")
    ] = None
    language: Annotated[Rate | None, help_text("learning rate of the language model")] = None


class Training(Shape, frozen=True):
    """The parts of the model that are trained."""

    mode: Annotated[
        Literal["lora", "full"],
        help_text("train a low-rank adapter, or all weights", default="lora; tiny: full"),
    ] = "lora"
    lora: Annotated[Lora, help_text("low-rank adapter; no effect if mode is full")] = msgspec.field(
        default_factory=Lora
    )
    freeze: Annotated[
        Annotated[list[Part], Meta(max_length=3)],
        help_text("parts that are not trained", default="[vision] with lora, [] with full"),
    ] = []
    learning_rates: Annotated[
        LearningRates | None, help_text("learning rates of parts of the model")
    ] = None
    weights_precision: Annotated[
        Literal["float32", "bfloat16"],
        help_text(
            "number format of weights and gradients with full; bfloat16 takes less memory, and its "
            "steps are rounded at random"
        ),
    ] = "float32"


DEFAULT_QUANTIZED_PARTS: tuple[Part, ...] = ("language",)


class Quantization(Shape, frozen=True):
    """4-bit base weights; with lora this is QLoRA. Requires the package bitsandbytes."""

    enabled: Annotated[bool, help_text("load the base weights in 4 bits")] = False
    type: Annotated[Literal["nf4", "fp4"], help_text("4-bit number format")] = "nf4"
    parts: Annotated[
        Annotated[list[Part], Meta(min_length=1, max_length=3)],
        help_text("parts in 4 bits; the others keep 16 bits", default="[language]"),
    ] = msgspec.field(default_factory=lambda: [*DEFAULT_QUANTIZED_PARTS])


class Compute(Shape, frozen=True):
    """Precision and performance settings. The trainer chooses auto values, shown in the plan."""

    precision_type: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        help_text(
            "number format of training; auto: bfloat16 if the device supports it well, else "
            "float16 on GPUs and float32 on CPUs"
        ),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool | Auto, help_text("recompute activations to save memory")
    ] = "auto"
    compile: Annotated[bool | Auto, help_text("compile the model before training")] = "auto"
    feature_cache: Annotated[
        bool | Auto,
        help_text(
            "cache the features of a frozen vision encoder instead of computing them every epoch"
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "eager", "sdpa", "flash_attention_2"], help_text("attention implementation")
    ] = "auto"


Pixels = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Images(Shape, frozen=True):
    """Image resolution. A sample that is too long gets a smaller image, or is left out."""

    min_pixels: Annotated[
        Pixels | Auto, help_text("minimum pixels, smaller images are enlarged; auto: the family's")
    ] = "auto"
    max_pixels: Annotated[
        Pixels | Auto | None,
        help_text(
            "maximum pixels, larger images are reduced; auto: 1.2 megapixels or the family's, the "
            "smaller one; null: the family's"
        ),
    ] = "auto"
    patch_budget: Annotated[
        Count | None,
        help_text("maximum tokens per image, larger images are reduced; null sets no limit"),
    ] = None


class Answers(Shape, frozen=True):
    """How the model writes its answers."""

    form: Annotated[
        AnswerFormName,
        help_text(
            "json: one JSON object, which the published client's inference reads; text: the answer "
            "alone; native: the answer alone, and boxes as the family was pretrained to write them"
        ),
    ] = "json"


class Schedule(Shape, frozen=True):
    """The learning rate schedule."""

    name: Annotated[
        Literal["cosine", "linear", "constant", "wsd"],
        help_text("shape of the curve after warm-up"),
    ] = "cosine"
    warmup_fraction: Annotated[
        Share, help_text("fraction of the steps in which the rate rises from zero")
    ] = 0.03
    min_factor: Annotated[Share, help_text("final rate, as a fraction of learningRate")] = 0.1


class Optimizer(Shape, frozen=True):
    """The optimizer."""

    name: Annotated[
        Literal["adamw", "adamw8bit", "muon", "adafactor", "sgd"], help_text("optimizer algorithm")
    ] = "adamw"
    weight_decay: Annotated[float, Meta(ge=0, le=10), help_text("weight decay")] = 0.01
    betas: Annotated[
        tuple[Annotated[float, Meta(ge=0, lt=1)], Annotated[float, Meta(ge=0, lt=1)]],
        help_text(
            "decay rates of the running means; muon and sgd use the first as momentum, adafactor "
            "uses none"
        ),
    ] = (0.9, 0.999)
    max_grad_norm: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None,
        help_text("gradient norm to clip to; null disables clipping"),
    ] = 1.0


class Loss(Shape, frozen=True):
    """The training loss."""

    answers_only: Annotated[bool, help_text("compute the loss only on the answers' tokens")] = True
    label_smoothing: Annotated[float, Meta(ge=0, lt=1), help_text("label smoothing")] = 0.0


class Hyperparameters(Shape, frozen=True):
    """Duration, batch size, learning rate and loss of the training."""

    epochs: Annotated[
        int,
        Meta(ge=1, le=10_000),
        help_text("passes over the training data", default="3; tiny: 12, with phrase-grounding 6"),
    ] = 3
    max_steps: Annotated[
        Count | None,
        help_text("maximum optimizer steps; the run ends at the earlier of epochs and maxSteps"),
    ] = None
    batch_size: Annotated[
        int,
        Meta(ge=1, le=65_536),
        help_text("samples per optimizer step, over all workers", default="8; tiny: 32"),
    ] = 8
    micro_batch_size: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | Auto,
        help_text(
            "samples per forward pass, a divisor of batchSize; auto: chosen to fit into memory"
        ),
    ] = "auto"
    learning_rate: Annotated[
        Rate,
        help_text(
            "peak learning rate",
            default="2e-4 with lora, 1e-5 with full; tiny: 3e-3, with phrase-grounding 1.2e-3",
        ),
    ] = 2e-4
    schedule: Annotated[
        Schedule,
        help_text("learning rate schedule; tiny with phrase-grounding: linear, 0.05, 0.01"),
    ] = msgspec.field(default_factory=Schedule)
    optimizer: Annotated[
        Optimizer, help_text("optimizer; tiny with phrase-grounding: muon, [0.95, 0.98]")
    ] = msgspec.field(default_factory=Optimizer)
    loss: Annotated[Loss, help_text("training loss")] = msgspec.field(default_factory=Loss)


class Every(Shape, frozen=True):
    """An interval between checkpoints or evaluations: exactly one of steps and minutes."""

    steps: Annotated[Count | None, help_text("interval in optimizer steps")] = None
    minutes: Annotated[
        Annotated[float, Meta(gt=0, le=525_600)] | None, help_text("interval in minutes")
    ] = None


class Checkpoint(Shape, frozen=True):
    """When checkpoints are saved, and which are kept."""

    every: Annotated[
        Literal["epoch"] | Every, help_text("interval: epoch, or an object with steps or minutes")
    ] = "epoch"
    keep: Annotated[
        int, Meta(ge=1, le=10_000), help_text("number of newest checkpoints to keep")
    ] = 3
    keep_best: Annotated[bool, help_text("also keep the best checkpoint")] = True
    metric: Annotated[
        Word, help_text("metric that selects the best, such as loss; auto: the task's own metric")
    ] = "auto"
    mode: Annotated[
        Literal["auto", "min", "max"],
        help_text("whether smaller or larger values of the metric are better"),
    ] = "auto"


class EarlyStopping(Shape, frozen=True):
    """Stop the run if the validation metric stops improving."""

    patience: Annotated[
        int, Meta(ge=1, le=10_000), help_text("evaluations without improvement before the run ends")
    ] = 3
    min_delta: Annotated[
        float, Meta(ge=0, le=1_000_000), help_text("minimum change that counts as an improvement")
    ] = 0.0


class Validation(Shape, frozen=True):
    """When the model is evaluated, and on how many held-out samples."""

    every: Annotated[
        Literal["epoch"] | Every, help_text("interval: epoch, or an object with steps or minutes")
    ] = "epoch"
    max_samples: Annotated[
        Count | None, help_text("maximum held-out samples per evaluation; null takes all")
    ] = 500
    previews: Annotated[
        int,
        Meta(ge=0, le=1000),
        help_text("number of answers stored with the true ones at each evaluation, for inspection"),
    ] = 8
    before_training: Annotated[
        bool,
        help_text("also evaluate before the first step, which shows what training starts from"),
    ] = True
    early_stopping: Annotated[
        EarlyStopping | None, help_text("stop the run if the validation metric stops improving")
    ] = None


Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]


class Evaluation(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Generation settings. The keys are snake_case; null takes the model's own value."""

    temperature: Annotated[
        float, Meta(ge=0, le=2), help_text("sampling temperature, if do_sample is true")
    ] = 1.0
    top_k: Annotated[
        int, Meta(ge=1, le=1000), help_text("sample only from the k most likely tokens")
    ] = 50
    top_p: Annotated[
        float,
        Meta(gt=0, le=1),
        help_text("sample only from the most likely tokens with this total probability"),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        Meta(gt=0, le=2),
        help_text("penalty for repeated tokens; above 1 makes them less likely"),
    ] = 1.05
    max_new_tokens: Annotated[
        int, Meta(ge=1, le=4096), help_text("maximum answer length in tokens")
    ] = 1024
    do_sample: Annotated[bool, help_text("sample tokens instead of taking the most likely")] = False
    seed: Annotated[
        int,
        Meta(ge=-1, le=2**31 - 1),
        help_text("random seed of sampling; -1 takes a new one each time"),
    ] = 0
    stop_strings: Annotated[
        StopText | list[StopText] | None, help_text("strings that end an answer")
    ] = None
    pad_token_id: Annotated[Token | None, help_text("padding token")] = None
    bos_token_id: Annotated[Token | None, help_text("token that begins a text")] = None
    eos_token_id: Annotated[Token | list[Token] | None, help_text("token that ends an answer")] = (
        None
    )


class ModelSettings(Shape, frozen=True):
    """The model, and how it is trained."""

    architecture: Annotated[Architecture, help_text("model and weights")] = msgspec.field(
        default_factory=Architecture
    )
    training: Annotated[Training, help_text("parts that are trained")] = msgspec.field(
        default_factory=Training
    )
    quantization: Annotated[Quantization, help_text("4-bit base weights")] = msgspec.field(
        default_factory=Quantization
    )
    compute: Annotated[Compute, help_text("precision and performance settings")] = msgspec.field(
        default_factory=Compute
    )
    images: Annotated[Images, help_text("limits on image resolution")] = msgspec.field(
        default_factory=Images
    )
    answers: Annotated[Answers, help_text("how the model writes its answers")] = msgspec.field(
        default_factory=Answers
    )
    packing: Annotated[
        bool | Auto, help_text("pack several samples into one sequence, with exact attention masks")
    ] = "auto"
    hyperparameters: Annotated[
        Hyperparameters, help_text("duration, batch size, learning rate and loss")
    ] = msgspec.field(default_factory=Hyperparameters)
    checkpoint: Annotated[Checkpoint, help_text("when checkpoints are saved")] = msgspec.field(
        default_factory=Checkpoint
    )
    validation: Annotated[Validation, help_text("when the model is evaluated")] = msgspec.field(
        default_factory=Validation
    )
    evaluation: Annotated[Evaluation, help_text("generation settings")] = msgspec.field(
        default_factory=Evaluation
    )
    on_out_of_memory: Annotated[
        Literal["fail", "shrink"],
        help_text(
            "shrink halves the micro-batch, keeps the batch size, and continues; fail ends the run"
        ),
    ] = "shrink"


# The block types. A fragment of the name decides the type, because the published client finds
# blocks that way.
FRAGMENTS = {"system-prompt": "vi-system-prompt", "dataset": "vi-dataset", "model": "vi-model"}
BLOCKS: dict[str, type[Shape]] = {
    "vi-system-prompt": SystemPromptSettings,
    "vi-dataset": DatasetSettings,
    "vi-model": ModelSettings,
}


class Block(Shape, frozen=True):
    """One element of a flow. Its name decides which settings it may have."""

    block: Annotated[
        str,
        Meta(
            min_length=1, max_length=100, extra={"form": "vi-system-prompt, vi-dataset or vi-model"}
        ),
        help_text("name of the block, which contains its type"),
    ]
    settings: Annotated[dict[str, Any], help_text("the block's settings", default="{}")] = {}
    style: Annotated[
        dict[str, Any], help_text("layout data of editors; may hold anything", default="{}")
    ] = {}


class FlowShape(Shape, frozen=True):
    """A flow as written by users. Every field is optional."""

    name: Annotated[
        str, Meta(max_length=200), help_text("display name of the flow", default="Untitled")
    ] = "Untitled"
    schema: Annotated[Literal["v1"], help_text("version of the flow language", default="v1")] = "v1"
    training_project: Annotated[
        Id | None, help_text("training project, or dataset, that the runs belong to")
    ] = None
    tolerations: Annotated[
        dict[str, list[Annotated[str, Meta(max_length=256)]]],
        help_text(
            "machines it may run on: each key is a capacity label, with the accepted values",
            default="{}",
        ),
    ] = {}
    settings: Annotated[FlowSettings, help_text("settings of the run as a whole", default="{}")] = (
        msgspec.field(default_factory=FlowSettings)
    )
    blocks: Annotated[
        list[Block],
        Meta(max_length=100),
        help_text(
            "elements of the flow, each type at most once; an empty list is complete", default="[]"
        ),
    ] = []
