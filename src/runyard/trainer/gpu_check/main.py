"""The table of ``scripts/gpu-check``: every path of the trainer on an accelerator, once.

Each check has a process of its own and a time limit. What all need (torch, the trainer) is imported
once, in the process that they are forked from. On a device they run one after the other; in the dry
form, which tests this program on a processor, two at once.
"""

import argparse
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runyard.trainer.gpu_check.isolation import Check, CheckReport, CheckRow, run_check, run_checks
from runyard.trainer.gpu_check.machine import GIB, describe_host, hide_accelerators, list_versions
from runyard.trainer.gpu_check.runs import LARGE_MODEL, SMALL_MODEL, CheckContext

DEADLINE_S = {True: 300.0, False: 470.0}  # of all checks: dry, and on a device
CHECK_S = {True: 120.0, False: 90.0}
COMPILE_S = 120.0
DRY_SLOTS = 2
EXIT_FAILED, EXIT_CANNOT_RUN = 1, 2
NAME_WIDTH, RESULT_WIDTH = 28, 8
REQUIRED = ("torch", "transformers", "peft", "accelerate", "msgspec", "PIL", "jinja2")
MODELING = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
SAMPLES = 40
LARGE_MEMORY_BYTES, LARGE_DISK_BYTES = 15 * GIB, 9 * GIB
OPTIMIZERS = ("adamw", "adamw8bit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the table; return the exit code."""
    given = parse_arguments(arguments)
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        print(
            f"gpu-check: not installed: {', '.join(missing)}; try: install them, or put their "
            "wheels into a folder and name it with --wheels",
            file=sys.stderr,
        )
        return EXIT_CANNOT_RUN
    deadline_s = time.monotonic() + given.deadline
    prepare_process(is_dry=given.dry)
    rows: list[CheckRow] = []
    print(format_line("check", "result", "s", "detail"), flush=True)
    with tempfile.TemporaryDirectory(prefix="runyard-gpu-check-", dir=given.folder) as name:
        threads = 1 if given.dry else os.cpu_count() or 1
        context = CheckContext(folder=Path(name), is_dry=given.dry, threads=threads)
        for row in check_machine(context, only=given.only, deadline_s=deadline_s):
            rows.append(row)
            print(format_line(row.check, row.result, f"{row.seconds:.1f}", row.detail), flush=True)
    print_summary(rows)
    if given.json is not None:
        given.json.write_text(json.dumps(make_document(rows, is_dry=given.dry), indent=1) + "\n")
    return EXIT_FAILED if any(row.result == "failed" for row in rows) else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="Check every path of the trainer on this machine's accelerator, once.",
    )
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes on the processor, to test this program"
    )
    parser.add_argument("--json", type=Path, help="write versions and all numbers to this file")
    parser.add_argument(
        "--wheels", type=Path, help="use the packages of a folder of wheels, without installing"
    )
    parser.add_argument("--only", default="", help="run the checks whose names contain this text")
    parser.add_argument(
        "--folder", type=Path, help="where models are written, 9 GiB; the system's by default"
    )
    parser.add_argument("--deadline", type=float, help="seconds for all checks; default: 470")
    given = parser.parse_args(arguments)
    given.deadline = given.deadline or DEADLINE_S[given.dry]
    return given


def prepare_process(*, is_dry: bool) -> None:
    """Import what the checks need, in a process that never initializes a device."""
    from runyard.trainer import environment
    from runyard.trainer.main import PRELOADED, shorten_spinning

    if is_dry:
        hide_accelerators()
    # Libraries ask for CUDA when they are imported, which must not initialize it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    shorten_spinning()
    environment.stay_offline()
    # With a device, peft may import bitsandbytes, which initializes the device.
    names = [*PRELOADED, MODELING, *(["peft"] if is_dry else [])]
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    import torch
    import transformers

    environment.read_once()
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def check_machine(context: CheckContext, *, only: str, deadline_s: float) -> Iterator[CheckRow]:
    """Run all checks; those after a failed one that they depend on are left out."""
    from runyard.trainer.gpu_check.devices import check_devices
    from runyard.trainer.gpu_check.speed import measure_speed

    limit_s = CHECK_S[context.is_dry]

    def run(check: Check) -> CheckRow:
        return run_check(check, context.folder, deadline_s=deadline_s)

    found = run(
        Check(name="devices", function=check_devices, arguments=(context,), limit_s=limit_s)
    )
    yield found
    if found.result != "ok":
        return
    if not (context.is_dry or found.numbers["count"]):
        yield CheckRow(check="accelerator", result="failed", detail="none found; try --dry")
        return
    context = replace(
        context,
        devices=found.numbers["count"],
        device_name=found.numbers["name"],
        memory_bytes=found.numbers.get("memoryBytes", 0),
    )
    made = run(make_model_check(context, SMALL_MODEL))
    yield made
    if made.result != "ok":
        return
    # On a device, compiling may take minutes, so it comes last; in the dry form it comes first, so
    # that others run at the same time.
    last = [] if context.is_dry else [make_compile_check(context)]
    first = [make_compile_check(context)] if context.is_dry else []
    chosen = [check for check in [*first, *list_checks(context)] if only in check.name]
    slots = DRY_SLOTS if context.is_dry else 1
    yield from run_checks(chosen, context.folder, deadline_s=deadline_s, slots=slots)
    if only in "speed":
        made = run(make_model_check(context, LARGE_MODEL))
        yield made
        if made.result == "ok":
            reserved_s = sum(check.limit_s for check in last)
            yield from measure_speed(
                context, run, lambda: deadline_s - reserved_s - time.monotonic()
            )
    yield from (run(check) for check in last if only in check.name)


def make_model_check(context: CheckContext, size: str) -> Check:
    return Check(
        name=f"{size} model",
        function=make_model,
        arguments=(context, size),
        limit_s=CHECK_S[context.is_dry],
    )


def make_model(context: CheckContext, size: str) -> CheckReport:
    """Write a model with random weights and a dataset for it."""
    from runyard.trainer.gpu_check import model
    from runyard.trainer.gpu_check.devices import choose_device
    from runyard.trainer.gpu_check.isolation import Unavailable

    is_large = size == LARGE_MODEL
    shape = model.TINY if context.is_dry else model.LARGE if is_large else model.SMALL
    if is_large and not context.is_dry:
        if context.memory_bytes < LARGE_MEMORY_BYTES:
            raise Unavailable(f"needs a device with {LARGE_MEMORY_BYTES // GIB} GiB")
        if shutil.disk_usage(context.folder).free < LARGE_DISK_BYTES:
            raise Unavailable(f"needs {LARGE_DISK_BYTES // GIB} GiB of disk; try: --folder")
    count = model.save_model(
        context.folder / "models" / size,
        shape,
        device=choose_device(context).type,
        dtype="bfloat16" if is_large and not context.is_dry else "float32",
    )
    model.save_dataset(context.folder / "datasets" / size, shape, SAMPLES)
    return CheckReport(f"Qwen2.5-VL, {count:,} random weights", {"parameters": count})


def make_compile_check(context: CheckContext) -> Check:
    from runyard.trainer.gpu_check.numerics import check_compile

    return Check(name="compile", function=check_compile, arguments=(context,), limit_s=COMPILE_S)


def list_checks(context: CheckContext) -> list[Check]:
    """Return the checks of a small model, apart from compiling it."""
    from runyard.trainer.gpu_check import devices, memory, numerics, options, saving

    limit_s = CHECK_S[context.is_dry]

    def make(name: str, function: Any, *arguments: Any) -> Check:
        return Check(name=name, function=function, arguments=(context, *arguments), limit_s=limit_s)

    return [
        make("matrix products", devices.check_matrix_products),
        *(
            make(f"precision {name}", numerics.check_precision, name)
            for name in ("float32", "bfloat16", "float16")
        ),
        make("bfloat16 weights", numerics.check_low_weights),
        make("attention eager, sdpa", numerics.check_attention),
        make("attention flash", numerics.check_flash_attention),
        make("attention flash, packed", numerics.check_packed_flash),
        make("packing", numerics.check_packing),
        make("gradient checkpointing", numerics.check_recomputing),
        make("DoRA, projector", options.check_adapters),
        make("QLoRA", options.check_quantization),
        make("optimizers", options.check_optimizers),
        make("copies of a checkpoint", saving.check_copies),
        *(make(f"resume with {name}", saving.check_resuming, name) for name in OPTIMIZERS),
        make("resume bfloat16 weights", saving.check_resuming, "adamw", "bfloat16"),
        make("memory prediction", memory.check_prediction),
        make("out of memory", memory.check_shrinking),
        make("evaluation batches", options.check_evaluation),
        *(make(f"two ranks, {name}", options.check_ranks, name) for name in ("ddp", "fsdp")),
    ]


def format_line(check: str, result: str, seconds: str, detail: str) -> str:
    return f"{check:<{NAME_WIDTH}} {result:<{RESULT_WIDTH}} {seconds:>6}  {detail}"


def print_summary(rows: Sequence[CheckRow]) -> None:
    """Print how many checks had which result, and the last lines of those that failed."""
    counts = [f"{sum(row.result == name for row in rows)} {name}" for name in ("ok", "skipped")]
    failed = [row for row in rows if row.result == "failed"]
    print(f"\n{', '.join(counts)}, {len(failed)} failed")
    for row in failed:
        print(f"\n{row.check}: {row.detail}\n{textwrap.indent(row.log, '    ')}")


def make_document(rows: Sequence[CheckRow], *, is_dry: bool) -> dict[str, Any]:
    """Return all that was found, for the JSON file."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "form": "dry" if is_dry else "full",
        "isPassed": not any(row.result == "failed" for row in rows),
        "versions": list_versions(),
        "host": describe_host(),
        "device": rows[0].numbers if rows else {},
        "rows": [asdict(row) for row in rows],
    }
