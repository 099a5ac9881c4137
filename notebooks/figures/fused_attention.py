"""Figures of chapter 11."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def beliefs(curves, scores, tile, truth):
    """The answer so far of two versions of an online softmax; below, the scores they see."""
    fig, (top, low) = new(7.2, 3.8, rows=2, sharex=True, height_ratios=[2, 1])
    places = tile * (1 + np.arange(len(next(iter(curves.values())))))
    for (name, values), colour in zip(curves.items(), (RIGHT, WRONG), strict=True):
        top.plot(places, values, "o-", markersize=3, linewidth=1.2, color=colour)
        top.text(places[-1] + 3, values[-1] - 0.04, name, color=colour, va="top")
    top.axhline(truth, color="#222222", linewidth=0.8)
    top.text(2, truth, "the answer", va="bottom", fontsize=9)
    top.set(ylabel="answer so far", xlim=(0, 305))
    low.plot(np.arange(len(scores)), scores, ".", markersize=3, color=NEUTRAL)
    low.step(np.arange(len(scores)), np.maximum.accumulate(scores), color="#222222", linewidth=1)
    low.text(len(scores) + 3, float(scores.max()), "largest so far", va="center", fontsize=9)
    low.set(xlabel="keys seen", ylabel="score")
    show(
        fig,
        "Answers so far of an online softmax over 256 keys whose scores rise. Rescaled, the answer "
        "climbs and ends on the "
        "right value, a line. Not rescaled, it climbs more slowly and ends well below. The largest "
        "score so far is a "
        "staircase under them.",
    )


def tiles(problems):
    """Which tiles of scores are computed: hidden pairs grey, skipped tiles white."""
    fig, axes = new(7.2, 3.2, columns=len(problems), width_ratios=[1.35, 1])
    key = "blue: seen      grey: hidden, computed with its tile      white: skipped"
    fig.suptitle(key, fontsize=10)
    for ax, (T, S, tile) in zip(axes, problems, strict=True):
        length = 11 if S > T else S
        for t in range(T):
            for s in range(S):
                own = length - T + t
                # what the tile's last query sees
                last = length - T + min(T, (t // tile + 1) * tile) - 1
                made = s // tile * tile <= last and s < length
                colour = "#ffffff" if not made else COLOURS["S"] if s <= own else "#dddddd"
                ax.add_patch(
                    Rectangle((s, t), 1, 1, facecolor=colour, edgecolor="#eeeeee", linewidth=0.5)
                )
        for s in range(0, S + 1, tile):
            ax.plot([s, s], [0, T], color="#555555", linewidth=1)
        for t in [*range(0, T, tile), T]:
            ax.plot([0, S], [t, t], color="#555555", linewidth=1)
        unused = f", {S - length} slots not in use" if S > length else ""
        ax.set(
            xlim=(0, S),
            ylim=(T, 0),
            aspect="equal",
            xlabel=f"{length} keys{unused}",
            ylabel=f"{T} queries",
        )
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    show(
        fig,
        "Two grids of queries and keys cut into tiles of four. Blue pairs are seen, grey ones are "
        "hidden but computed because "
        "their tile is, white tiles are skipped. In the grid of 5 queries and 11 keys the "
        "diagonal ends at key 11, lower "
        "right; in the prompt of 16 the six tiles above the diagonal are white.",
    )


def roofline(work, copy, product, measured=None):
    """Operations a second over operations per byte: the roof, computed places as rings, measured
    ones as dots.
    """
    fig, ax = new(7.2, 3.9)
    machine = "NVIDIA H200, data sheet"
    if measured:
        copy, product = (
            measured["ceilings"]["copy_bytes_per_s"],
            measured["ceilings"]["matmul_flops_per_s"],
        )
        machine = measured["machine"]["gpu"]
    x = np.geomspace(1, 20_000, 200)
    ax.loglog(x, np.minimum(x * copy, product) / 1e12, color="#222222", linewidth=1.5)
    memory = f"memory: {copy / 1e12:.1f} TB/s"
    slope = {"rotation": 32, "rotation_mode": "anchor"}
    ax.text(8, 8 * 1.3 * copy / 1e12, memory, fontsize=9, **slope)
    arithmetic = f"arithmetic: {product / 1e12:.0f} TFLOP/s ({machine})"
    ax.text(19_000, product / 1e12 * 1.45, arithmetic, ha="right", fontsize=9)
    ax.axvline(product / copy, color=NEUTRAL, linewidth=0.8, linestyle=":")
    ax.text(
        product / copy * 1.05,
        1.2,
        f"{product / copy:.0f} operations per byte",
        fontsize=9,
        color="#555555",
    )
    places = {
        "step, table": (-8, 5, "right"),
        "step, fused": (8, -9, "left"),
        "prompt, table": (8, -9, "left"),
        "prompt, fused": (0, -17, "center"),
    }
    for name, (operations, moved) in work.items():
        intensity = operations / moved
        colour = WRONG if "table" in name else RIGHT
        y = min(intensity * copy, product) / 1e12
        ax.plot(
            intensity,
            y,
            "o",
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.8,
            color=colour,
        )
        dx, dy, side = places[name]
        ax.annotate(
            name,
            (intensity, y),
            (dx, dy),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            ha=side,
        )
    for row in measured["attention"] if measured else []:
        ax.plot(
            row["flops"] / row["bytes"], row["flops"] / row["seconds"] / 1e12, ".", color="#555555"
        )
    ax.set(xlabel="operations per byte", ylabel="TFLOP/s", xlim=(1, 20_000), ylim=(1, 3000))
    show(
        fig,
        "A roofline on logarithmic axes: a slope for memory that meets a flat line for arithmetic "
        f"at {product / copy:.0f} operations per byte. "
        "Computed rings: a prompt with the table on the slope at 63, fused on the flat part at "
        "3,277; a step with the table "
        "and fused on the slope together, near 4.",
    )
