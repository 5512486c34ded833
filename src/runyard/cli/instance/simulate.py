"""``runyard simulate``: try how the queue decides, on a cluster with a virtual clock."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from runyard.cli.failures import CommandFailed
from runyard.cli.output import format_duration
from runyard.cli.progress import WorkLine

PROGRESS_EVERY = 500
WIDTH, HEIGHT, LEFT, TOP, GAP = 720, 150, 60, 40, 50

_STYLE = (
    "text{font:12px sans-serif;fill:#444}line{stroke:#8888}"
    "path{fill:none;stroke-width:1.5}.used{stroke:#2a7de1}.waiting{stroke:#d9730d}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.used{stroke:#6cb0ff}"
    ".waiting{stroke:#ffa657}}"
)


@click.command()
@click.option(
    "--nodes", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Machines."
)
@click.option(
    "--accelerators",
    type=click.IntRange(0, 64),
    default=8,
    show_default=True,
    help="Accelerators of each machine.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 10_000_000),
    help="Runs of the synthetic load. [default: 10000]",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Runs from a CSV or JSON Lines file instead of the synthetic load.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the synthetic load.")
@click.option(
    "--load",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    help="Capacity that the synthetic load asks for while runs arrive.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--image", type=click.Path(path_type=Path, dir_okay=False), help="Write the curves as SVG."
)
def simulate(
    nodes: int,
    accelerators: int,
    runs: int | None,
    trace: Path | None,
    seed: int,
    load: float,
    as_json: bool,
    image: Path | None,
) -> None:
    """Simulate how the queue places runs on many machines.

    The result has waits, utilization, preemptions and the fairness among projects.

    \b
    The columns of a trace: submit_s, project, duration_s, and, if needed, priority, accelerators,
    limit_s, members, preemptible.
    """
    from runyard.server.scheduling.loads import (
        InvalidTrace,
        build_machines,
        build_shares,
        generate_runs,
        read_trace,
    )
    from runyard.server.scheduling.simulation import Simulation

    if runs is not None and trace is not None:
        raise click.UsageError("--runs is for the synthetic load; try: --trace alone")
    if image is not None and not image.parent.is_dir():
        raise click.UsageError(f"{image.parent} is not a folder; try: create it first")
    capacity = nodes * max(1, accelerators)
    shares = build_shares()
    try:
        if trace is not None:
            traced = read_trace(trace)
            count, coming, shares = len(traced), iter(traced), []
        else:
            count = 10_000 if runs is None else runs
            coming = generate_runs(
                count, seed=seed, capacity=capacity, accelerators=accelerators, load=load
            )
    except InvalidTrace as error:
        raise CommandFailed(str(error)) from error
    with WorkLine() as line:

        def show(done: int) -> None:
            if done % PROGRESS_EVERY == 0 or done == count:
                line.update("runs ended", done, count)

        result = Simulation(
            build_machines(nodes, accelerators=accelerators), shares, on_progress=show
        ).run(coming)
    summary = _summarize(result, nodes=nodes)
    if image is not None:
        curves = result.curves
        image.write_text(draw_curves(curves.times_s, curves.used, curves.waiting), encoding="utf-8")
    click.echo(json.dumps(summary, indent=2) if as_json else _format_table(summary))


def _summarize(result: Any, *, nodes: int) -> dict[str, Any]:
    used_s = sum(result.used_s.values())
    weights = {name: result.weights.get(name, 1.0) for name in result.used_s}
    total_weight = sum(weights.values())
    return {
        "nodes": nodes,
        "runs": result.runs,
        "ended": result.ended,
        "neverPlaced": result.never_placed,
        "virtualSeconds": result.virtual_s,
        "utilization": round(result.utilization, 4),
        "placements": result.placements,
        "preemptions": result.preemptions,
        "placementsPerSecond": round(result.placements_per_s),
        "waits": [
            {"class": name, "runs": len(waits), **_summarize_waits(waits)}
            for name, waits in sorted(result.waits_s.items())
        ],
        "projects": [
            {
                "project": name,
                "weight": weights[name],
                "share": round(used / used_s, 4) if used_s else 0.0,
                "shareByWeight": round(used / used_s / weights[name] * total_weight, 4)
                if used_s
                else 0.0,
            }
            for name, used in sorted(result.used_s.items())
        ],
    }


def _summarize_waits(waits: Sequence[float]) -> dict[str, float]:
    ordered = sorted(waits)
    return {
        "medianSeconds": statistics.median(ordered),
        "p90Seconds": ordered[math.ceil(0.9 * len(ordered)) - 1],
        "p99Seconds": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "longestSeconds": ordered[-1],
    }


def _format_table(summary: dict[str, Any]) -> str:
    names = ("medianSeconds", "p90Seconds", "p99Seconds", "longestSeconds")
    width = max([len("class"), *(len(row["class"]) for row in summary["waits"])])
    lines = [f"{'class':<{width}}{'runs':>10}{'median':>10}{'p90':>10}{'p99':>10}{'longest':>10}"]
    for row in summary["waits"]:
        cells = "".join(f"{format_duration(row[name]):>10}" for name in names)
        lines.append(f"{row['class']:<{width}}{row['runs']:>10,}{cells}")
    lines += ["", f"{'project':<{width}}{'weight':>10}{'share':>10}{'share/weight':>14}"]
    for row in summary["projects"]:
        lines.append(
            f"{row['project']:<{width}}{row['weight']:>10g}{row['share']:>10.1%}"
            f"{row['shareByWeight']:>14.2f}"
        )
    lines += [
        "",
        f"{summary['ended']:,} of {summary['runs']:,} runs ended on {summary['nodes']:,} machines "
        f"in {format_duration(summary['virtualSeconds'])} of virtual time",
        f"utilization {summary['utilization']:.1%} until the last submission; "
        f"{summary['preemptions']:,} preemptions",
        f"{summary['placements']:,} placements, {summary['placementsPerSecond']:,} per second of "
        "real time",
    ]
    if summary["neverPlaced"]:
        lines.append(f"{summary['neverPlaced']:,} runs were never placed: no machines fit them")
    return "\n".join(lines)


def draw_curves(times_s: Sequence[float], used: Sequence[float], waiting: Sequence[int]) -> str:
    """Return utilization and queue length over time as SVG, readable on light and dark pages."""
    height = TOP + 2 * HEIGHT + 2 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" '
        f'role="img" aria-label="Utilization and queue length over time">',
        f"<style>{_STYLE}</style>",
        *_draw_chart("used", "Utilization", times_s, used, most=1.0, top=TOP, most_text="100 %"),
        *_draw_chart(
            "waiting",
            "Waiting runs",
            times_s,
            waiting,
            most=max(1, *waiting) if waiting else 1,
            top=TOP + HEIGHT + GAP,
            most_text=f"{max(waiting, default=0):,}",
        ),
        f'<text x="{LEFT + WIDTH}" y="{height - 20}" text-anchor="end">'
        f"{format_duration(times_s[-1] if times_s else 0)}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _draw_chart(
    kind: str,
    title: str,
    times_s: Sequence[float],
    values: Iterable[float],
    *,
    most: float,
    top: int,
    most_text: str,
) -> list[str]:
    last_s = max(1.0, times_s[-1]) if times_s else 1.0
    points = " ".join(
        f"{LEFT + WIDTH * time_s / last_s:.1f},{top + HEIGHT * (1 - min(1.0, value / most)):.1f}"
        for time_s, value in zip(times_s, values, strict=True)
    )
    bottom = top + HEIGHT
    return [
        f'<text x="{LEFT}" y="{top - 8}">{title}</text>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most_text}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + WIDTH}" y2="{bottom}"/>',
        f'<path class="{kind}" d="M{points}"/>' if points else "",
    ]
