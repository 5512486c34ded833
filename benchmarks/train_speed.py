"""Compare the speed of our trainer's steps with other training loops.

The same model with the same random weights, the same samples, batch size, number of steps, rates
and threads, in float32 on the processor: a flow through our trainer; a bare loop in plain torch
over samples encoded beforehand; transformers' Trainer over such samples, and with a collator that
calls the processor; TRL's SFTTrainer with its own image handling. ``train_loops.py`` describes each
loop, ``train_case.py`` its input.

Every loop and round has a separate process, and begins with all imports done. Loops alternate in
changing order, each ratio is taken within its round (above 1, ours is faster), and the medians
over the rounds are shown. A step is the time between the ends of two steps, building the batch
included. Where all samples are of one length it is the median of the steps; with answers of mixed
length, and with a frozen tower, the mean, because then steps differ for a reason.

Speed counts only if the same is learned. So the bare loop runs once more in the order of our
batches, and once in the Trainer's: both curves of losses must be the same to one in a thousand. In
the last round each model is measured on the same samples: loops that took them in another order
must end within 2 % of the loss at the beginning, there and in the mean over the last quarter of the
steps. Exceptions are in the table.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import train_loops
from train_case import CASES, Shape, forget_attempt, write_case
from train_loops import Task, run_in_fork

ROOT = Path(__file__).parent.parent
OURS, PEERS = ROOT / ".venv" / "bin" / "python", ROOT / ".venv-peers" / "bin" / "python"
OF_PEERS = ("trainer-cached", "trainer", "trl")
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
MARK = "train_speed"
SAME_CURVE = 1e-3  # of the value; sums in another order, over hundreds of steps
SAME_END = 0.02  # of the loss at the beginning; the order of samples differs
VOCABULARY = 12_288
Start = Callable[[Task], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loop in one case, medians over the rounds. Ratios are its time over ours."""

    case: str
    loop: str
    step_ms: float
    cpu_ms: float
    samples_per_s: float
    tokens_per_s: float
    ratio: float | None
    token_ratio: float | None
    cpu_ratio: float | None
    start_s: float
    run_s: float
    first_loss: float
    last_loss: float
    end_loss: float
    rounds: int
    remark: str


def main() -> None:
    given = arguments()
    shapes = [CASES[name] for name in given.cases]
    if given.short:
        shapes = [replace(CASES["tiny"], samples=64, steps=20)]
    if given.steps:
        shapes = [replace(shape, steps=whole_quarters(given.steps)) for shape in shapes]
    if set(given.loops) & set(OF_PEERS):
        subprocess.run([ROOT / "scripts" / "setup-peers"], check=True, stdout=sys.stderr)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="runyard-train-speed-") as name, Peers() as peers:
        prepare_environment(Path(name))

        def start(task: Task) -> None:
            forget_attempt(Path(task.case))
            (peers.run if task.loop in OF_PEERS else run_in_fork)(task)

        for shape in shapes:
            folder, threads = Path(name) / shape.name, given.threads or own_threads(shape)
            micro = (
                given.micro_batch
                if given.micro_batch == "auto"
                else int(given.micro_batch or shape.batch_size)
            )
            write_case(
                folder, shape, vocabulary=given.vocabulary, threads=threads, micro_batch=micro
            )
            measured = measure(
                folder, shape, given.loops, given.rounds or shape.rounds, threads, start
            )
            rows += compared(shape, measured, checked(folder, given.loops, threads, start))
    report = {"machine": machine(), "vocabulary": given.vocabulary}
    if given.json:
        print(json.dumps(report | {"rows": [row.__dict__ for row in rows]}))
    else:
        print_table(rows)
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
    if given.write:
        write_results(given.write, section(rows, report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=names_of(CASES), default=list(CASES), help=", ".join(CASES))
    parser.add_argument(
        "--loops",
        type=names_of(train_loops.LOOPS),
        default=list(train_loops.LOOPS),
        help=", ".join(train_loops.LOOPS),
    )
    parser.add_argument(
        "--rounds", type=int, help="processes of each loop in each case; 3 of tiny, 2 of medium"
    )
    parser.add_argument(
        "--steps", type=int, help="of each process, instead of the case's own; a multiple of 20"
    )
    parser.add_argument(
        "--threads", type=int, help="of every loop; what our trainer takes where it is left out"
    )
    parser.add_argument(
        "--vocabulary", type=int, default=VOCABULARY, help="words of the medium model"
    )
    parser.add_argument(
        "--micro-batch",
        help="of ours: a number or auto; the whole batch, as the others, without it",
    )
    parser.add_argument(
        "--short", action="store_true", help="ours and the bare loop, some steps of a small case"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=RESULTS,
        help="put the table into this page, else benchmarks/RESULTS.md",
    )
    given = parser.parse_args()
    given.rounds = 1 if given.short else given.rounds and max(1, given.rounds)
    given.loops = ["ours", "bare"] if given.short else given.loops
    return given


def names_of(known: Any) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not among {', '.join(known)}")
        return found

    return read


def whole_quarters(steps: int) -> int:
    """Losses are reported every few steps, and the last quarter of them is compared."""
    unit = 4 * train_loops.LOG_EVERY
    return max(unit, steps // unit * unit)


def own_threads(shape: Shape) -> int:
    """Return the number of threads that our trainer uses on an idle machine."""
    return 1 if shape.is_tiny else os.cpu_count() or 1


def prepare_environment(folder: Path) -> None:
    """Return the loops' environment: no network, CPU only, caches below ``folder``."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "OPENBLAS_NUM_THREADS": "1",
    }
    from runyard.trainer.main import preload

    preload()
    train_loops.preload()
    import transformers

    transformers.logging.disable_progress_bar()


class Peers:
    """The process in ``.venv-peers`` of which the other loops are forks.

    Started with the first of them.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()  # which closes its input, and so ends it

    def run(self, task: Task) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [PEERS, train_loops.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task.__dict__), file=self._process.stdin, flush=True)
        if problem := json.loads(self._process.stdout.readline()):
            raise RuntimeError(problem)


def measure(
    folder: Path, shape: Shape, loops: list[str], rounds: int, threads: int, start: Start
) -> dict[str, list[dict[str, Any]]]:
    """Return the reports of every loop in every round."""
    found: dict[str, list[dict[str, Any]]] = {loop: [] for loop in loops}
    for number in range(rounds):
        turn = number % len(loops)
        for loop in loops[turn:] + loops[:turn]:
            output, began_s = folder / f"{loop}.json", time.monotonic()
            is_last = number + 1 == rounds
            start(
                Task(
                    loop=loop,
                    case=str(folder),
                    output=str(output),
                    threads=threads,
                    is_measured=is_last,
                )
            )
            found[loop].append(json.loads(output.read_text()))
            step_ms = 1000 * step_s(shape, found[loop][-1]["wall_s"])
            say(f"{shape.name:13} round {number + 1}  {loop:15} {step_ms:8.1f} ms a step")
            say(f"  ({time.monotonic() - began_s:.0f} s in all)\n")
    return found


def step_s(shape: Shape, ends_s: list[float]) -> float:
    taken = [after - before for before, after in pairwise(ends_s)][shape.settling_steps :]
    return statistics.median(taken) if shape.is_uniform else statistics.mean(taken)


def token_s(shape: Shape, report: dict[str, Any]) -> float:
    """Seconds per token without padding, over the same steps."""
    return step_s(shape, report["wall_s"]) / statistics.mean(
        report["tokens"][shape.settling_steps :]
    )


def checked(folder: Path, loops: list[str], threads: int, start: Start) -> dict[str, str]:
    """Remarks by loop: how its losses differ from those of the bare loop in the same order."""
    remarks: dict[str, str] = {}
    if "bare" not in loops:
        return remarks
    trainers = [loop for loop in OF_PEERS if loop in loops]
    # TRL does not report its order.
    leader = next((loop for loop in trainers if loop != "trl"), None)
    groups = {"ours": ["ours"] if "ours" in loops else [], leader or "": trainers if leader else []}
    for of, members in groups.items():
        if not members:
            continue
        output = folder / f"bare-as-{of}.json"
        order = str(folder / f"{of}.json")
        start(Task(loop="bare", case=str(folder), output=str(output), threads=threads, order=order))
        expected = json.loads(output.read_text())["losses"]
        for loop in members:
            worst = largest_difference(
                json.loads((folder / f"{loop}.json").read_text())["losses"], expected
            )
            is_same = worst <= SAME_CURVE
            remarks[loop] = "same curve" if is_same else f"CURVE DIFFERS by {worst:.1%}"
            say(f"  {loop}: losses as the bare loop's in the same order to {worst:.1e}\n")
    return remarks


def largest_difference(found: list[float], expected: list[float]) -> float:
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def compared(
    shape: Shape, measured: dict[str, list[dict[str, Any]]], remarks: dict[str, str]
) -> list[Row]:
    """Return the rows of one case, ours first."""
    ours = measured.get("ours")
    rows = []
    for loop, rounds in measured.items():
        ratios = (
            None
            if ours is None
            else [paired(shape, *pair) for pair in zip(rounds, ours, strict=True)]
        )
        sample, token, cpu = (
            (None,) * 3 if ratios is None else map(statistics.median, zip(*ratios, strict=True))
        )
        taken = statistics.median(step_s(shape, report["wall_s"]) for report in rounds)
        losses = rounds[-1]["losses"]
        rows.append(
            Row(
                case=shape.name,
                loop=loop,
                step_ms=round(1000 * taken, 2),
                cpu_ms=round(
                    1000 * statistics.median(step_s(shape, report["cpu_s"]) for report in rounds), 2
                ),
                samples_per_s=round(shape.batch_size / taken, 1),
                tokens_per_s=round(
                    1 / statistics.median(token_s(shape, report) for report in rounds)
                ),
                ratio=sample and round(sample, 3),
                token_ratio=token and round(token, 3),
                cpu_ratio=cpu and round(cpu, 3),
                start_s=round(
                    statistics.median(
                        report["wall_s"][1] - report["wall_s"][0] for report in rounds
                    ),
                    2,
                ),
                run_s=round(
                    statistics.median(
                        report["wall_s"][-1] - report["wall_s"][0] for report in rounds
                    ),
                    2,
                ),
                first_loss=round(losses[0], 4),
                last_loss=round(last_quarter(losses), 4),
                end_loss=round(rounds[-1]["endLoss"], 4),
                rounds=len(rounds),
                remark=", ".join(
                    filter(None, [remarks.get(loop, ""), *in_words(rounds[-1].get("plan", {}))])
                ),
            )
        )
    return [with_end_compared(row, rows) for row in rows]


def paired(shape: Shape, peer: dict[str, Any], ours: dict[str, Any]) -> tuple[float, float, float]:
    """Of one round: the peer's time over ours, a step, a token, and a step on the processor."""
    return (
        step_s(shape, peer["wall_s"]) / step_s(shape, ours["wall_s"]),
        token_s(shape, peer) / token_s(shape, ours),
        step_s(shape, peer["cpu_s"]) / step_s(shape, ours["cpu_s"]),
    )


def last_quarter(losses: list[float]) -> float:
    return statistics.mean(losses[-(len(losses) // 4) :])


def in_words(plan: dict[str, Any]) -> list[str]:
    """Describe choices of our trainer that other loops lack."""
    chosen = {"packing": "samples share rows", "featureCache": "features kept"}
    return [words for name, words in chosen.items() if plan.get(name)]


def with_end_compared(row: Row, rows: list[Row]) -> Row:
    """Another order of samples ends elsewhere, but not far."""
    remarks = [row.remark]
    for what, field in (("last quarter", "last_loss"), ("end", "end_loss")):
        expected = statistics.median(getattr(other, field) for other in rows)
        away = (getattr(row, field) - expected) / rows[0].first_loss
        if abs(away) > SAME_END:
            remarks.append(f"{what.upper()} {away:+.1%} of the start")
    return replace(row, remark=", ".join(filter(None, remarks)))


def machine() -> dict[str, str | int]:
    processor = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if platform.system() == "Linux"
        else None
    )
    pinned = dict(
        re.findall(
            r"^(trl|datasets)==(\S+)", (ROOT / "requirements" / "peers.txt").read_text(), re.M
        )
    )
    return {
        "processor": processor[1] if processor else platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        **pinned,
    }


CAPTION = (
    "x: its time over ours, above 1 ours is faster; loss: first steps > last quarter; "
    f"end: loss of the trained model on {train_loops.MEASURED_SAMPLES} samples"
)
HEADS = (
    "case",
    "loop",
    "ms/step",
    "samples/s",
    "tokens/s",
    "x sample",
    "x token",
    "x CPU",
    "start s",
    "run s",
    "loss",
    "end",
    "remark",
)


def cells(row: Row) -> tuple[str, ...]:
    ratios = (
        "" if value is None else f"{value:.2f}"
        for value in (row.ratio, row.token_ratio, row.cpu_ratio)
    )
    return (
        row.case,
        row.loop,
        f"{row.step_ms:.1f}",
        f"{row.samples_per_s:,.1f}",
        f"{row.tokens_per_s:,}",
        *ratios,
        f"{row.start_s:.1f}",
        f"{row.run_s:.1f}",
        f"{row.first_loss:.2f} > {row.last_loss:.3f}",
        f"{row.end_loss:.3f}",
        row.remark,
    )


def print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, caption=CAPTION)
    for column in table.columns[2:10]:
        column.justify = "right"
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.case != row.case:
            table.add_section()
        table.add_row(*cells(row), style="bold" if row.loop == "ours" else None)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)


def section(rows: list[Row], report: dict[str, Any]) -> str:
    """Return the results as a section of a Markdown page."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    on = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    return "\n".join(
        [
            "## Steps of training",
            "",
            f"`make bench-train`, {datetime.now(UTC):%Y-%m-%d}, medians of the rounds, medium "
            f"model of {report['vocabulary']:,} words. {on}.",
            "",
            "*x* is the loop's time over ours: above 1, ours is faster. *start* is from the call "
            "to the end of the first step, reading data and model included, *run* to that of the "
            "last. *loss* is that of the first steps and the mean of the last quarter, *end* that "
            f"of the trained model on {train_loops.MEASURED_SAMPLES} samples; *same curve*: as the "
            "bare loop's in the same order, to one in a thousand.",
            "",
            *lines,
        ]
    )


def write_results(path: Path, text: str, *, mark: str = MARK) -> None:
    """Replace a benchmark's section and leave the others' as they are."""
    page = path.read_text() if path.exists() else "# Results of the benchmarks\n"
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    block = f"{begin}\n{text}\n{end}"
    if begin in page:
        before, _, rest = page.partition(begin)
        page = before + block + rest.partition(end)[2]
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    path.write_text(page)


def say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
