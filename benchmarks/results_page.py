"""RESULTS.md and its plots, from the figures of the parts and from nothing else.

A record is what bench.py keeps of a part: `figures` as its script wrote them, or `failed` with the reason;
`command`, `date`, `machine`, `load_average` and `others_busy_cores`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srgan.pages import plots

Record = Mapping[str, Any]
Figures = Mapping[str, Any]

QUIET_SHARE = 0.05  # of the cores: what others may use before a part says that the machine was not quiet

_HEAD = """\
# Measured

Written by `make bench` from the figures in [results/](results/); not edited by hand. What each script measures and
how is in [README.md](README.md). Contenders of a part take turns; a figure is the median of its turns, with the
lowest and the highest behind it, and a ratio is the median of the turns' own. Times belong to the machine.
"""


@dataclass
class Section:
    """What a part has to say: lines of Markdown, plots by file name, and what is worth repeating at the top."""

    lines: list[str]
    plots: dict[str, str] = field(default_factory=dict)
    in_short: list[str] = field(default_factory=list)


def in_short(records: Mapping[str, Record]) -> str:
    """Return what is worth repeating of all parts, as a list in Markdown; "" where nothing was measured."""
    lines = [line for section in _sections(records).values() for line in section.in_short]
    return "".join(f"- {line}\n" for line in lines)


def render(records: Mapping[str, Record]) -> tuple[str, dict[str, str]]:
    """Return the page, and the content of every plot by its file name; a part without a record is named."""
    sections = _sections(records)
    machines = [record["machine"] for record in records.values()]
    alike = all(machine == machines[0] for machine in machines)
    blocks = [_HEAD]
    if machines and alike:
        blocks.append(_machine(machines[0]))
    if short := in_short(records):
        blocks.append(f"## In short\n\n{short}")
    for name, section in sections.items():
        lines = [f"## {SECTIONS[name][0]}", "", *section.lines, ""]
        lines += [f"![{SECTIONS[name][0]}](plots/{plot})\n" for plot in section.plots]
        if name in records:
            lines.append(_circumstances(records[name]))
            if not alike:
                lines.append("\n" + _machine(records[name]["machine"]).strip())
        blocks.append("\n".join(lines).rstrip() + "\n")
    drawings = {plot: content for section in sections.values() for plot, content in section.plots.items()}
    return "\n".join(blocks), drawings


def _sections(records: Mapping[str, Record]) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for name, (_, write) in SECTIONS.items():
        record = records.get(name, {})
        if "figures" in record:
            sections[name] = write(record["figures"])
        else:
            sections[name] = Section([f"Not measured: {record.get('failed', 'this part has not been run yet')}."])
    return sections


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{machine['memory_gb']} GB of memory, {machine['system']}.  \nVersions: {versions}.\n"
    )


def _circumstances(record: Record) -> str:
    cores, others = record["machine"]["cores"], record["others_busy_cores"]
    origin = f"`{record['command']}`, {record['date']}, {record['seconds']:.0f} s."
    load = f"load average {record['load_average']:.1f} at the start"
    if others is None:
        return f"{origin} {load.capitalize()}."
    work = f"Other processes used {others:.2f} of {cores} cores meanwhile; {load}."
    return f"{origin} {'**Not quiet.** ' if others > QUIET_SHARE * cores else ''}{work}"


def engine(figures: Figures) -> Section:
    """Runtimes on one generator, at each size; the plot and what is repeated are of the last one."""
    section = Section(
        [
            f"Float32, but for lines that name another precision; {figures['threads']} threads"
            f"{', CPU seconds' if figures['cpu_time'] else ''}. GFLOP/s are "
            "those of the network as published; the share is of the fastest float32 matrix product that three "
            "libraries reach here.",
        ]
    )
    for size in figures["sizes"]:
        _engine_at(size, section)
    return section


def _engine_at(figures: Figures, section: Section) -> None:
    side, contenders = figures["size_lr_px"], figures["contenders"]
    measured = {name: contender["seconds"] for name, contender in contenders.items() if "seconds" in contender}
    ours = next(iter(measured))
    fastest = min(statistics.median(seconds) for seconds in figures["products"].values())
    peak = figures["product_operations"] / fastest
    rows, drawn, others, own = [], [], [], []
    for name, contender in contenders.items():
        if "missing" in contender:
            rows.append([name, f"not measured: {contender['missing']}", "", "", ""])
            continue
        median = statistics.median(contender["seconds"])
        rate, per_megapixel = figures["operations"] / median, median / (16 * side**2 / 1e6)
        faster = ratios(contender["seconds"], measured[ours])
        compared = "" if name == ours else spread(faster, 2)
        speed = f"{rate / 1e9:.0f}, {rate / peak:.0%}"
        rows.append([name, spread(contender["seconds"], 3), f"{per_megapixel:.2f}", speed, compared])
        drawn.append((name, per_megapixel, f"{per_megapixel:.2f} s"))
        factor = statistics.median(faster)
        if name.startswith(f"{ours}, "):
            own.append(f"{1 / factor:.2f} ({name.removeprefix(f'{ours}, ')})")
        elif name != ours:
            others.append(f"{factor:.2f} ({name})")
    header = [f"{side}×{side} in", "seconds", "s per output megapixel", "GFLOP/s, of peak", f"{ours} is faster"]
    section.lines += ["", *table(header, rows)]
    title = f"Seconds per output megapixel, {side}×{side} in (shorter is faster)"
    section.plots = {"engine.svg": plots.bars(title, drawn, ours=[ours])}
    section.in_short = []
    if own:
        section.in_short += [f"The engine on {side}×{side}, faster than in float32 by: {', '.join(own)}."]
    if others:
        section.in_short += [f"In float32 on {side}×{side}, faster by: {', '.join(others)}."]


def folder(figures: Figures) -> Section:
    """Whole processes over folders."""
    rows, drawn, short = [], [], []
    for case in figures["cases"]:
        ours = [run["wall"] for run in case["runs"]["srgan upscale"]]
        for name, runs in case["runs"].items():
            wall = [run["wall"] for run in runs]
            peak = statistics.median(run["peak_bytes"] for run in runs) / 1e6
            cpu = statistics.median(run["cpu"] for run in runs)
            works = name.startswith("srgan upscale") or name == "plain script"
            rate = f"{case['pictures'] / statistics.median(wall):.2f}" if works else ""
            compared = "" if name == "srgan upscale" else spread(ratios(wall, ours), 2)
            rows.append([case["name"], name, spread(wall, 2), rate, f"{cpu:.1f}", f"{peak:.0f}", compared])
        factor = statistics.median(ratios([run["wall"] for run in case["runs"]["plain script"]], ours))
        drawn.append((case["name"].partition(",")[0], factor, f"{factor:.2f} times as fast"))
        short.append(f"{factor:.2f} ({case['name']})")
    header = ["folder", "", "seconds", "files per second", "CPU seconds", "peak MB", "`srgan upscale` is faster"]
    plot = plots.bars("Files per second over those of the plain script", drawn, ours=[row[0] for row in drawn])
    lines = ["Whole processes, from start to end, results as PNG.", "", *table(header, rows)]
    short_line = (
        f"`srgan upscale FOLDER` against a plain script of PyTorch and Pillow, faster by: {', '.join(short)}."
    )
    return Section(lines, {"folder.svg": plot}, [short_line])


def batch(figures: Figures) -> Section:
    """The folder job over its own inference."""
    turns = figures["turns"]
    overhead = [turn["job"] / turn["inference"] for turn in turns]
    job = statistics.median(turn["job"] for turn in turns)
    each = figures["pictures"] / len(turns)
    lines = [
        f"{figures['pictures']} PNG of {figures['size']} in {len(turns)} turns, {figures['workers']} workers, the "
        "model loaded: decoding, upscaling, encoding and flushing to the disk, over upscaling alone.",
        "",
        *table(
            ["job over inference alone", "files per second of the job"],
            [[spread(overhead, 3), f"{each / job:.2f}"]],
        ),
    ]
    return Section(lines, in_short=[f"A folder job takes {spread(overhead, 3)} times its inference alone."])


def memory(figures: Figures) -> Section:
    """Memory and time against size."""
    reference = next((row for row in figures["ours"] if row["size"] == figures["reference"]), None)
    rows, lines_drawn, short = [], {}, []
    labels = {"ours": "srgan", "fp32": "srgan, fp32", "int8": "srgan, int8", "plain": "PyTorch, whole picture"}
    for how, label in labels.items():
        for row in figures.get(how, []):
            if "missing" in row:
                rows.append([row["size"], label, f"not measured: {row['missing']}", "", "", "", ""])
                continue
            compared = ""
            if how == "ours" and reference and "wall" in reference and row is not reference:
                compared = f"{row['wall'] / reference['wall']:.2f}"
            size = [row["size"], label, f"{row['megapixels']:.1f}", f"{row['wall']:.2f}", f"{row['cpu']:.2f}"]
            rows.append([*size, compared, f"{row['peak'] / 1e9:.2f}"])
        measured = [row for row in figures.get(how, []) if "peak" in row]
        lines_drawn[label] = [(row["megapixels"] / 16, row["peak"] / 1e9) for row in measured]
        if measured:
            last = measured[-1]
            short.append(f"{last['peak'] / 1e9:.2f} GB for {last['size']} ({label})")
    header = ["in", "", "megapixels out", "s per output megapixel", "CPU s per output megapixel"]
    header += [f"time of a pixel over that at {figures['reference']}", "peak GB without the result"]
    drawn = {label: line for label, line in lines_drawn.items() if line}
    plot = plots.curves(
        "Peak memory by picture size",
        drawn,
        x_name="megapixels in",
        y_name="GB, both axes logarithmic",
        log=True,
    )
    lines = ["One picture, one process, measured once.", "", *table(header, rows)]
    return Section(lines, {"memory.svg": plot} if drawn else {}, [f"Peak memory: {', '.join(short)}."])


def tiles(figures: Figures) -> Section:
    """Time and error of tiles."""
    whole = figures["whole_seconds"]
    rows: list[list[str]] = []
    drawn: dict[str, list[tuple[float, float]]] = {}
    for row in figures["rows"]:
        time = ratios(row["seconds"], whole)
        kind = f"tile {row['tile']}, halo {row['halo']}" if row["tile"] else "strips of rows"
        rows.append([kind, f"{row['pixels_run']:.2f}", spread(time, 2), f"{row['difference']:.3f}"])
        if row["tile"]:
            drawn.setdefault(f"halo {row['halo']}", []).append((row["tile"], statistics.median(time)))
    side = figures["side_lr_px"]
    lines = [
        f"A photograph of {side}×{side} in tiles, against the whole picture ({spread(whole, 3)} s). The model's "
        "reach is 40: from that halo on, tiles change nothing.",
        "",
        *table(
            [
                "",
                "pixels run over the picture's",
                "time over the whole picture's",
                "largest error in levels of 255",
            ],
            rows,
        ),
    ]
    plot = plots.curves(
        "Time over that of the whole picture, by tile size",
        drawn,
        x_name="side of a tile's core, LR pixels",
        y_name="times the whole picture",
    )
    strips = next((row for row in figures["rows"] if not row["tile"]), None)
    short = []
    if strips:
        times = statistics.median(ratios(strips["seconds"], whole))
        short = [f"Strips of rows take {times:.2f} times as long as the whole picture, and are off by nothing."]
        if strips["difference"] >= 0.05:
            short = []
    return Section(lines, {"tiles.svg": plot} if drawn else {}, short)


def training(figures: Figures) -> Section:
    """Patches per second of both stages."""
    rows, drawn, short = [], [], []
    for stage, measured in figures["stages"].items():
        if "missing" in measured:
            rows.append([stage, f"not measured: {measured['missing']}", "", ""])
            continue
        ours = measured["loops"]["ours"]
        for loop, seconds in measured["loops"].items():
            rate = measured["patches"] / statistics.median(seconds)
            compared = "" if loop == "ours" else spread(ratios(seconds, ours), 2)
            rows.append([stage, loop, f"{rate:.2f}", compared])
            drawn.append((f"{stage}: {loop}", rate, f"{rate:.1f} patches/s"))
            if loop.startswith("plain"):
                short.append(f"{statistics.median(ratios(seconds, ours)):.2f} ({stage}, {loop})")
        share = statistics.median(measured["drawing"]) / statistics.median(ours)
        rows.append([stage, "drawing and degrading a batch", f"{share:.1%} of our step", ""])
    lines = [
        f"Recipe `{figures['recipe']}`; ours computes in {figures['precision']}, the plain loop in float32.",
        "",
        *table(["stage", "loop", "patches per second", "ours is faster"], rows),
    ]
    plot = plots.bars("Training patches per second", drawn, ours=[row[0] for row in drawn if ": ours" in row[0]])
    in_short = [f"Training against a plain loop, faster by: {', '.join(short)}."] if short else []
    return Section(lines, {"training.svg": plot} if drawn else {}, in_short)


def load(figures: Figures) -> Section:
    """The service under load."""
    statuses = ", ".join(f"{count} × {status}" for status, count in figures["statuses"].items())
    resident, latency, health = figures["resident_mib"], figures["latency_s"], figures["health_s"]
    rows = [
        ["throughput over that of the engine alone", f"{figures['ratio']:.3f}"],
        ["engine alone, thousand pixels of input per second", f"{figures['engine_lr_px_per_s'] / 1e3:.1f}"],
        ["service, the same", f"{figures['service_lr_px_per_s'] / 1e3:.1f}"],
        ["answers", statuses],
        ["wrong pictures", str(figures["wrong"])],
        ["latency p50, p99, max", _latencies(latency)],
        ["`/healthz` p50, p99, max", _latencies(health)],
        ["resident memory, highest", f"{resident['highest']} MiB"],
    ]
    for precision, other in figures.get("others", {}).items():
        rows += [
            [f"in {precision}: throughput over that of the engine alone", f"{other['ratio']:.3f}"],
            [f"in {precision}: thousand pixels of input per second", f"{other['service_lr_px_per_s'] / 1e3:.1f}"],
            [f"in {precision}: latency p50, p99, max", _latencies(other["latency_s"])],
            [f"in {precision}: resident memory, highest", f"{other['resident_mib']['highest']} MiB"],
        ]
    curve = {"MiB": [(second, mib) for second, mib in resident["curve"]]}
    plot = plots.curves("The server's resident memory under load", curve, x_name="seconds", y_name="MiB")
    lines = [f"Clients without a pause for {figures['seconds']:.0f} s.", "", *table(["", ""], rows)]
    short = f"The service under load reaches {figures['ratio']:.3f} of the engine's own throughput."
    return Section(lines, {"load.svg": plot} if resident["curve"] else {}, [short])


Write = Callable[[Figures], Section]
SECTIONS: dict[str, tuple[str, Write]] = {
    "engine": ("Engine", engine),
    "folder": ("Folders, end to end", folder),
    "batch": ("Folder job beside its inference", batch),
    "memory": ("Memory and time by picture size", memory),
    "tiles": ("Tiles", tiles),
    "training": ("Training", training),
    "load": ("Service under load", load),
}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return what each turn of theirs takes over the same turn of ours."""
    return [their_s / our_s for their_s, our_s in zip(theirs, ours, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, and the lowest and highest where there is more than one: 1.10 (1.08–1.13)."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *escaped]]


def _latencies(values: Mapping[str, float]) -> str:
    return ", ".join(f"{values[name]:.3f} s" for name in ("p50", "p99", "max"))
