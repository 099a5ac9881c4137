"""Figures of chapter 3."""

import numpy as np
import torch

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


ZONES = {"kept": "#0072B2", "blended": "#B8A800", "divided": "#D55E00"}
CHOICES = {
    "unchanged": (WRONG, "--"),
    "Llama 3.1's scaling": (RIGHT, "-"),
    "everything divided by 8": (COLOURS["K"], "-"),
}


def same_rows(names, rows):
    """The vectors of two sentences, as coloured strips: the same rows in another order."""
    fig, axes = new(7, 1.9, columns=2)
    limit = max(float(np.abs(row).max()) for row in rows.values())
    for ax, words in zip(axes, names, strict=True):
        ax.imshow(np.stack([rows[word] for word in words]), vmin=-limit, vmax=limit, aspect="auto")
        ax.set(
            title=" ".join(words),
            yticks=range(len(words)),
            yticklabels=words,
            xticks=[],
            xlabel="D",
        )
        ax.grid(False)
    show(
        fig,
        "Two pictures of three rows each; the rows of dog and man have changed places, no row has "
        "changed.",
    )


def arrows(q, k, pairs, turn):
    """A query and a key turned for several (m, n): the angle between them depends on m - n only."""
    fig, axes = new(7.4, 2.7, columns=len(pairs))
    for ax, (m, n) in zip(axes, pairs, strict=True):
        for vector, colour, label in (
            (turn(q, m), COLOURS["T"], "q"),
            (turn(k, n), COLOURS["F"], "k"),
        ):
            ax.annotate(
                "",
                vector,
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2},
            )
            ax.text(*(1.22 * np.asarray(vector)), label, color=colour, ha="center", va="center")
        for vector, colour in ((q, COLOURS["T"]), (k, COLOURS["F"])):
            ax.plot([0, vector[0]], [0, vector[1]], ":", color=colour, linewidth=1)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        ax.axis("off")
        ax.set_title(f"m = {m}, n = {n}: q·k = {float(np.dot(turn(q, m), turn(k, n))):.0f}")
    show(
        fig,
        "Three pictures of a query and a key as arrows, at positions (2, 1), (3, 2) and (5, 4): "
        "the pair turns as a "
        "whole, the angle between the arrows stays, and so does the dot product, 3.",
    )


def drift(positions, added, turned):
    """Score of one query and one key at a fixed distance, against where they stand."""
    fig, ax = new(6.6, 2.9)
    ax.plot(positions, added, color=WRONG)
    ax.plot(positions, turned, color=RIGHT)
    ax.set(xlabel="position of the key (the query stands 3 later)", ylabel="score $q \\cdot k$")
    ax.set_ylim(-6, 36)
    ax.text(2, 31, "position added (sinusoids)", color=WRONG)
    ax.text(2, -4.5, "position as a rotation", color=RIGHT)
    show(
        fig,
        "The score with added positions moves up and down as the pair moves along; with rotation "
        "it is flat.",
    )


def clocks(speeds, positions, kernels):
    """Left: hands of several speeds at several positions. Right: similarity over distance."""
    fig, axes = new(7.4, 3, columns=2, width_ratios=[1, 1.15])
    dial = np.linspace(0, 2 * np.pi, 100)
    shades = (ZONES["divided"], ZONES["blended"], ZONES["kept"])
    for row, (speed, colour) in enumerate(zip(speeds, shades, strict=True)):
        for column, position in enumerate(positions):
            x, y = 2.4 * column, -2.4 * row
            axes[0].plot(x + np.cos(dial), y + np.sin(dial), color="#cccccc", linewidth=0.8)
            end = x + 0.9 * np.cos(speed * position), y + 0.9 * np.sin(speed * position)
            axes[0].annotate("", end, (x, y), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes[0].text(-1.4, y, f"{np.degrees(speed):.3g}°", ha="right", va="center", color=colour)
    axes[0].set(
        xlim=(-3.4, 2.4 * len(positions) - 1.2), ylim=(-6.2, 1.4), aspect="equal", yticks=[]
    )
    axes[0].set_xticks([2.4 * i for i in range(len(positions))], [str(p) for p in positions])
    axes[0].set(title="hands at five positions", xlabel="position")
    axes[0].grid(False)
    for (label, values), colour in zip(kernels.items(), (*shades, "#222222"), strict=True):
        axes[1].plot(values, color=colour, label=label, linewidth=2 if label == "all three" else 1)
    axes[1].set(
        title="similarity to the vector at distance 0", xlabel="distance", ylim=(-1.1, 1.75)
    )
    axes[1].legend(ncols=2, loc="upper center", fontsize=8)
    show(
        fig,
        "Left: dials for 90, 10 and 1 degree a step at positions 0, 1, 2, 4 and 36; the fast hand "
        "repeats after 4, the "
        "slow one hardly moves. Right: the fast cosine returns to 1 every 4 positions, the slow "
        "one is flat, and the mean "
        "of all three reaches 1 only at distance 0.",
    )


def wavelengths(lengths, context=8192):
    """Wavelength of every pair, for several thetas."""
    fig, ax = new(6.8, 3.2)
    for (theta, values), colour in zip(lengths.items(), (NEUTRAL, RIGHT), strict=True):
        ax.semilogy(values, ".-", markersize=4, color=colour)
        ax.text(len(values) + 0.5, values[-1], f"theta\n{theta:,.0f}", color=colour, va="center")
    ax.axhline(context, color=WRONG, linewidth=1)
    ax.text(0, context * 1.2, "8,192 positions", color=WRONG)
    ax.set(xlabel="pair i (W/2 = 64)", ylabel="positions per full turn")
    show(
        fig,
        "Wavelengths rise as straight lines on a log scale from 6.3 positions at pair 0: to 54 "
        "thousand with theta 10,000, "
        "to 2.6 million with theta 500,000. They cross 8,192 at pairs 50 and 35.",
    )


def pairings(width=8):
    """Which two entries of a head form a pair, and the permutation between the two conventions."""
    fig, ax = new(7.2, 3)
    shades = [ZONES["divided"], ZONES["blended"], COLOURS["H"], ZONES["kept"]]
    half = width // 2
    for j in range(width):
        target = j // 2 + half * (j % 2)
        colour = shades[j // 2]
        ax.plot([j, target], [1.8, 0.2], color=colour, linewidth=1)
        for x, y, label in ((j, 2, f"$x_{j}$"), (target, 0, f"$x_{j}$")):
            ax.add_patch(_box(x, y, colour))
            ax.text(x, y, label, ha="center", va="center", color="white")
    for i in range(half):
        ax.annotate("", (2 * i, 2.25), (2 * i + 1, 2.25), arrowprops=_bracket(shades[i], 0.6))
        ax.annotate("", (i, -0.25), (i + half, -0.25), arrowprops=_bracket(shades[i], -0.25))
    ax.text(-1.1, 2, "interleaved\n(Meta, GGUF)", ha="right", va="center")
    ax.text(-1.1, 0, "half-split\n(Hugging Face)", ha="right", va="center")
    ax.set(xlim=(-3.2, width - 0.3), ylim=(-1.5, 2.8))
    ax.axis("off")
    show(
        fig,
        "Eight entries of a head. Above, neighbours 0-1, 2-3, 4-5, 6-7 are joined as pairs; below, "
        "the even entries have "
        "moved to the left half, the odd ones to the right, and each pair is four places apart.",
    )


def _box(x, y, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.38, y - 0.2), 0.76, 0.4, color=colour)


def _bracket(colour, bend):
    return {
        "arrowstyle": "-",
        "color": colour,
        "connectionstyle": f"arc3,rad={bend}",
        "linewidth": 1.2,
    }


def losses(curves, window=32):
    """Next-token loss along a text, smoothed, for several rotations."""
    fig, ax = new(6.8, 3.1)
    styles = {
        "as trained (interleaved)": (RIGHT, "-"),
        "half-split, rows permuted too": ("#222222", ":"),
        "half-split": (WRONG, "-"),
        "no rotation at all": (NEUTRAL, "--"),
    }
    kernel = np.ones(window) / window
    for label, values in curves.items():
        colour, line = styles[label]
        smooth = np.convolve(values.numpy(), kernel, mode="valid")
        ax.plot(np.arange(len(smooth)) + window, smooth, line, color=colour, label=label)
    ax.set(
        xlabel="position in the text",
        ylabel=f"loss in nats, mean of {window} tokens",
        ylim=(2, 8.2),
    )
    ax.legend(ncols=2, loc="upper center", fontsize=8)
    show(
        fig,
        "Loss along a text of 256 tokens: as trained mostly 2.5 to 4.5; half-split on the same "
        "weights 4.5 to 6, as "
        "high as without any rotation; half-split with permuted rows lies exactly on the trained "
        "curve.",
    )


def precision(positions, errors):
    """Largest error of any angle, in radians, by position and number format."""
    fig, ax = new(6.8, 3.2)
    colours = {"bfloat16": WRONG, "float16": COLOURS["K"], "float32": RIGHT}
    for label, values in errors.items():
        ax.loglog(
            positions,
            np.maximum(values, 1e-9),
            "o-",
            markersize=3,
            color=colours[label],
        )
        last = np.flatnonzero(np.isfinite(values))[-1]
        ax.text(positions[last] * 1.4, values[last] * 0.6, label, color=colours[label], va="center")
    ax.axhline(np.pi, color="#888888", linewidth=1)
    ax.text(
        positions[0],
        np.pi * 1.4,
        "half a turn: nothing is left of the angle",
        color="#666666",
        fontsize=9,
    )
    ax.set(xlabel="position", ylabel="largest error (radians)", xlim=(0.7, 1.5e6))
    show(
        fig,
        "Largest angle error over position: bfloat16 passes half a turn at a position of about a "
        "thousand, float16 at "
        "its last point, 32,767, float32 stays below a hundredth of a radian at 131,071.",
    )


def shifts(offsets, moved):
    """How far the real model's logits move when every position is shifted by the same amount."""
    fig, ax = new(6.8, 3)
    colours = {"bfloat16": WRONG, "float32": RIGHT, "float64": "#222222"}
    for label, values in moved.items():
        ax.loglog(offsets, values, "o-", markersize=4, color=colours[label])
        ax.text(offsets[-1] * 1.4, values[-1], label, color=colours[label], va="center")
    ax.set(xlabel="all positions shifted by", ylabel="largest change of a logit", ylim=(1e-5, 200))
    ax.set(title="angles computed in ...", xlim=(0.7, 7e5))
    show(
        fig,
        "Change of the real logits over the shift: flat near 0.0001 with float64 angles, rising to "
        "two hundredths "
        "with float32, and to more than twenty with bfloat16.",
    )


def coverage(turns, trained, raw, scaled):
    """Turns made within the context by each pair: short training, and 131,072 positions with and
    without scaling.
    """
    fig, ax = new(7, 3.5)
    pairs = range(len(trained))
    known = np.where(trained >= 1, turns[1], trained)
    ax.fill_between(pairs, 1e-4, known, color="#e3edf5", linewidth=0, step="mid")
    lines = (
        (raw, WRONG, "--", "131,072, unchanged"),
        (scaled, RIGHT, "-", "131,072, scaled"),
        (trained, "#222222", "-", "8,192, as trained"),
    )
    for (values, colour, line, label), shift in zip(lines, (1, 1.2, 0.75), strict=True):
        ax.semilogy(pairs, values, line, color=colour)
        ax.text(64, values[-1] * shift, label, color=colour, va="center", fontsize=9)
    ax.axhline(1, color="#888888", linewidth=0.8)
    ax.text(62.5, 1.25, "one full turn", ha="right", color="#666666", fontsize=9)
    ax.text(
        2,
        4e-3,
        "shaded: angles met in training\n(pairs 0 to 34: the whole circle)",
        color="#4a7090",
    )
    ax.annotate(
        "not met in training",
        (45, 0.5),
        (41, 3e2),
        color=WRONG,
        arrowprops={"arrowstyle": "->", "color": WRONG},
    )
    ax.set(
        xlabel="pair i",
        ylabel="turns over that many positions",
        ylim=(1e-3, turns[1]),
        xlim=(0, 63),
    )
    show(
        fig,
        "Turns over pair index, log scale; the shaded range is what training covered: everything "
        "for pairs 0 to 34, and "
        "less than one turn for pairs 35 to 63. Unchanged frequencies leave it sixteenfold, scaled "
        "ones twofold.",
    )


def zones(before, after, labels):
    """Frequency over wavelength, before and after scaling, and the factor between them, in three
    colours.
    """
    fig, (left, right) = new(7.4, 3.2, columns=2)
    wavelength = 2 * np.pi / before
    left.loglog(wavelength, before, color=NEUTRAL, linewidth=1, label="before")
    for zone, colour in ZONES.items():
        here = np.array([label == zone for label in labels])
        count = f"{zone}: pairs {np.flatnonzero(here)[0]}..{np.flatnonzero(here)[-1]}"
        left.loglog(wavelength[here], after[here], ".", color=colour, label=count)
        right.semilogx(wavelength[here], (before / after)[here], ".", color=colour)
    for ax in (left, right):
        for edge in (2048, 8192):
            ax.axvline(edge, color="#bbbbbb", linewidth=0.8)
        ax.set_xlabel("wavelength before (positions)")
    left.set(title="radians per position", xlim=(4, 5e6))
    left.legend(fontsize=8)
    right.set(title="slowed down by a factor of", yticks=[1, 2, 4, 8], xlim=(4, 5e6))
    show(
        fig,
        "Left: frequencies fall along a line; pairs 0 to 28 stay on it, 29 to 34 bend away, 35 to "
        "63 run parallel, eight "
        "times lower. Right: the slowing factor is 1 up to 2,048, rises steeply to 8 at 8,192 and "
        "stays.",
    )


def kernel(distances, curves):
    """Mean cosine over all pairs by distance, for the choices of frequencies; and the first few
    distances alone.
    """
    fig, (left, right) = new(7.4, 3.3, columns=2, width_ratios=[1, 1.9])
    near = np.asarray(distances) <= 8
    for label, values in curves.items():
        colour, line = CHOICES[label]
        left.plot(
            np.asarray(distances)[near], np.asarray(values)[near], line, color=colour, marker="."
        )
        right.semilogx(distances, values, line, color=colour, label=label, linewidth=1)
    right.axvline(8192, color="#bbbbbb", linewidth=0.8)
    left.set(title="neighbours", xlabel="distance", ylabel="mean of cos(distance × f)")
    right.set(title="up to 131,072", xlabel="distance", ylim=(-0.1, 1.25))
    right.legend(fontsize=8, ncols=2, loc="upper center")
    show(
        fig,
        "Left: from distance 0 to 8 the unchanged and the scaled kernel fall together to 0.80, the "
        "one divided by 8 stays "
        "at 0.98. Right: the unchanged kernel falls towards zero beyond 8,192; the scaled one "
        "stays above it, near 0.2.",
    )


def copying(gaps, curves, without):
    """Loss of the second copy of a passage against the gap of positions before it."""
    fig, ax = new(6.8, 3.2)
    places = np.arange(len(gaps))
    for label, values in curves.items():
        colour, line = CHOICES[label]
        ax.plot(places, values, line, marker="o", markersize=4, color=colour)
    for name, x, y in zip(CHOICES, (5.05, 3.6, 0.1), (7.6, 1.7, 3.6), strict=True):
        ax.text(x, y, name, color=CHOICES[name][0], ha="right" if y > 7 else "left", fontsize=9)
    ax.axhline(without, color="#888888", linewidth=0.8)
    ax.text(0, without + 0.15, "first time it is read", color="#666666", fontsize=9, va="bottom")
    ax.set_xticks(places, [f"{gap:,}" for gap in gaps], fontsize=9)
    ax.set(
        xlabel="positions left free before the second copy",
        ylabel="loss of the second copy (nats)",
        ylim=(0, 8.5),
    )
    show(
        fig,
        "Loss of a repeated passage: with unchanged frequencies below 1 up to a gap of 4,096, then "
        "nearly 5 and more; with "
        "Llama 3.1's scaling below 2 up to 32,768 and high from 65,536 on; divided by 8, high "
        "everywhere.",
    )


def unnoticed(moved, loss_right, loss_wrong):
    """Change of logits along a text when the scaling is wrong, and the losses it leaves."""
    fig, (left, right) = new(7.4, 2.9, columns=2)
    left.plot(moved, color=WRONG, linewidth=0.8)
    left.set(title="largest change of a logit", xlabel="position in the text")
    right.scatter(loss_right, loss_wrong, s=6, color=WRONG, alpha=0.5)
    top = float(torch.stack((loss_right, loss_wrong)).max())
    right.plot([0, top], [0, top], color=NEUTRAL, linewidth=0.8)
    right.set(
        title="loss of each token (nats)",
        xlabel="frequencies as trained",
        ylabel="wrong scaling",
        aspect="equal",
    )
    show(
        fig,
        "Left: logits move by hundredths at the first positions and by 0.3 to 1.3 after 150. "
        "Right: the loss of every "
        "token with the wrong scaling against the right one: all points lie close to the diagonal.",
    )
