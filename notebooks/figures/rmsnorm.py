"""Figures of chapter 2."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, numbers, show


def lookup(table, ids, rows):
    """A table of rows, the ids, and the rows they select."""
    fig, (left, right) = new(7, 2.6, columns=2, width_ratios=[1, 1])
    numbers(left, table, title="embedding table (V, D)", colour=COLOURS["D"])
    numbers(right, rows, title=f"x = table[ids] (T, D), ids = {list(ids)}", colour=COLOURS["D"])
    left.set_yticks([i + 0.5 for i in range(len(table))], [f"id {i}" for i in range(len(table))])
    right.set_yticks([i + 0.5 for i in range(len(ids))], [f"token {i}" for i in range(len(ids))])
    show(
        fig,
        f"A {len(table)} by {len(table[0])} table; ids {list(ids)} pick its rows, one per token.",
    )


def stream_growth(real, toy):
    """RMS of the residual stream after each layer: the real model's, and a random toy stack's
    without a norm.
    """
    fig, (left, right) = new(7.4, 2.9, columns=2)
    for (label, values), colour in zip(real.items(), (NEUTRAL, COLOURS["L"]), strict=True):
        left.semilogy(range(len(values)), values, "o-", color=colour, markersize=3)
        above = label == "first token"
        left.text(14, 1300 if above else 1.6, label, color="#666666" if above else colour)
    left.set(
        title="SmolLM2-135M, real weights",
        xlabel="blocks applied",
        ylabel="RMS of the stream",
        ylim=(0.05, 4000),
    )
    for label, values, colour in (
        ("without a norm", toy["without"], WRONG),
        ("with RMSNorm", toy["with"], RIGHT),
    ):
        right.semilogy(range(1, len(values) + 1), values, color=colour)
        right.text(
            24, values[23] * (40 if colour == WRONG else 1.8), label, color=colour, ha="center"
        )
    right.set(title="Toy stack: x + M x, 40 times", xlabel="layers applied")
    show(
        fig,
        "Left: ordinary tokens grow from 0.1 to 30 over 30 blocks; the first token jumps to 946 in "
        "block 11 and stays. "
        "Right: without a norm the toy stack grows exponentially to a million, with one it stays "
        "below ten.",
    )


def circle(before, after):
    """2-D points before and after normalising."""
    fig, ax = new(5, 3.6)
    for start, end in zip(before, after, strict=True):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-", "color": "#dddddd"})
    ax.scatter(*before.T, s=14, color=NEUTRAL)
    ax.scatter(*after.T, s=14, color=RIGHT)
    ax.text(-3.6, 6.1, "x", color="#666666")
    ax.text(0.95, -1.75, "x / RMS(x)", color=RIGHT)
    angle = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.sqrt(2) * np.cos(angle), np.sqrt(2) * np.sin(angle), color=RIGHT, linewidth=0.7)
    ax.set(aspect="equal", title="D = 2: along their rays to radius $\\sqrt{2}$")
    show(
        fig,
        "Grey points move along rays from the origin onto a circle of radius square root of two.",
    )


def eps_places(scales, curves):
    """RMS of the output against the RMS of the input for several places of eps."""
    fig, ax = new(6.4, 3)
    styles = {
        "inside the root": (RIGHT, "-", 8e-3, 0.55),
        "outside the root": (WRONG, "-", 1.4e-5, 0.42),
        "no eps": (NEUTRAL, "--", 2e-7, 1.03),
    }
    for label, values in curves.items():
        colour, line, x, y = styles[label]
        ax.semilogx(scales, values, line, color=colour)
        ax.text(x, y, label, color="#666666" if colour == NEUTRAL else colour)
    ax.axvline(1e-5**0.5, color="#cccccc", linewidth=1)
    ax.text(1e-5**0.5 * 1.1, 0.05, "$\\sqrt{eps}$", color="#888888")
    ax.set(xlabel="RMS of the input", ylabel="RMS of the output", ylim=(-0.05, 1.13))
    show(
        fig,
        "Inside the root, inputs below 0.003 fade; outside, inputs a hundred times smaller still "
        "pass at full size.",
    )


def precision(magnitudes, errors):
    """Relative error against float64 for ways of computing the norm in 16 bits."""
    fig, ax = new(6.4, 3)
    colours = {
        "float16 throughout": (WRONG, 0.45, "#b04a00"),
        "bfloat16 throughout": (COLOURS["K"], 6.5e-3, "#a04d7c"),
        "float32 inside, 16 bits outside": (RIGHT, 2.9e-4, RIGHT),
    }
    for label, values in errors.items():
        colour, y, ink = colours[label]
        ax.loglog(magnitudes, values, "o-", markersize=3, color=colour)
        right = colour == WRONG
        ax.text(
            magnitudes[-1] if right else 0.3, y, label, color=ink, ha="right" if right else "left"
        )
    ax.set(xlabel="RMS of the input", ylabel="largest relative error")
    show(
        fig,
        "Error over input size: float16 fails completely from an RMS of 64 on, float32 inside "
        "stays at rounding error.",
    )


def gains(weights):
    """The learned weights of every norm: one sorted line per layer."""
    fig, axes = new(7.4, 2.8, columns=2, sharey=True)
    for ax, (title, rows) in zip(axes, weights.items(), strict=True):
        for i, row in enumerate(rows):
            ax.plot(
                sorted(row), color=COLOURS["L"], alpha=0.15 + 0.85 * i / len(rows), linewidth=0.8
            )
        ax.set(title=f"{title} (later layers darker)", xlabel="entry, sorted (D = 576)")
    axes[0].set_ylabel("weight")
    show(
        fig,
        "Sorted norm weights per layer: most entries lie close together, a few are far larger or "
        "negative.",
    )


def fold(original, folded):
    """Two matrices side by side: M, and M with the norm's weight multiplied into its columns."""
    fig, (left, right) = new(7, 2, columns=2)
    numbers(left, original, title="M (3, 4)", colour=COLOURS["D"])
    numbers(right, folded, title="M, columns times w", colour=COLOURS["D"])
    show(fig, "A 3 by 4 matrix and the same matrix with column j multiplied by weight j.")
