"""Figures of chapter 14."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, numbers, show


def by_hand(W, b, a):
    """W + b a of the first section, as grids of numbers."""
    fig, axes = new(7.2, 1.9, columns=5, width_ratios=[2, 1, 2, 2, 2])
    grids = (
        (W, "W", NEUTRAL),
        (b, "b (N, 1)", COLOURS["D"]),
        (a, "a (1, C)", COLOURS["H"]),
        (b @ a, "b a", RIGHT),
        (W + b @ a, "W + b a", NEUTRAL),
    )
    for ax, (matrix, title, colour) in zip(axes, grids, strict=True):
        numbers(ax, matrix, title=title, colour=colour)
    show(
        fig,
        "Five small grids: W is the two by two identity; a column b of 1 and -1; a row a of 0.2 "
        "and 0.4; their product, whose "
        "second row is the first with the sign changed; and the sum 1.2, 0.4, -0.2, 0.6.",
    )


def memory(sizes: dict, trained: dict):
    """What training keeps, in gigabytes, on a logarithmic axis: all weights, LoRA beside bfloat16,
    LoRA beside four bits, and the adapter's share of the last two.
    """
    fig, ax = new(7.6, 3.0)
    kinds = (
        ("the adapter's\nshare", COLOURS["D"], "center"),
        ("LoRA, base\nin 4 bits", COLOURS["S"], "right"),
        ("LoRA, base\nin bfloat16", RIGHT, "left"),
        ("all weights\nin float32", WRONG, "center"),
    )
    for y, (name, (full, lora, four)) in enumerate(sizes.items()):
        values = (trained[name], four, lora, full)
        ax.plot([values[0], full], [y, y], color="#dddddd", linewidth=2, zorder=1)
        for value, (kind, colour, side) in zip(values, kinds, strict=True):
            ax.plot(value, y, "o", color=colour, markersize=9)
            text = (
                f"{value:,.0f}"
                if value >= 100
                else (f"{value:.1f}" if value >= 1 else f"{value:.2g}")
            )
            ax.annotate(
                text, (value, y), (0, -17), textcoords="offset points", ha="center", fontsize=9
            )
            if name == list(sizes)[-1]:
                ax.annotate(
                    kind,
                    (value, y),
                    ({"center": 0, "right": 4, "left": -4}[side], 10),
                    textcoords="offset points",
                    ha=side,
                    fontsize=8.5,
                    color=colour,
                )
    ax.set(xscale="log", xlabel="GB", xlim=(0.02, 20_000), ylim=(-0.6, len(sizes) - 0.3))
    ax.set_xticks([0.1, 1, 10, 100, 1000, 10_000], ["0.1", "1", "10", "100", "1,000", "10,000"])
    ax.set_yticks(range(len(sizes)), list(sizes))
    ax.minorticks_off()
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "A row of four points each for SmolLM2, 8B and 405B on a logarithmic axis of gigabytes. "
        "Training all weights keeps 2.2, 128 and 6,494 GB; with LoRA beside bfloat16 0.31, 16 and "
        "817 GB, beside four bits 0.12, 5.4 and 259 GB. The adapter's share of that is 0.039, 0.34 "
        "and 5.0 GB.",
    )


def rank(sigmas: dict, noise, ranks, losses):
    """Singular values of real changes beside noise; and what is learned when only the first are
    kept.
    """
    fig, (left, right) = new(7.6, 3, columns=2)
    curves = list(zip(sigmas.items(), (COLOURS["T"], COLOURS["K"], COLOURS["F"]), strict=True))
    labels = ((92, 0.008, "wq"), (42, 0.018, "wv"), (95, 0.085, "gate"))
    for ((_, values), colour), (x, y, label) in zip(curves, labels, strict=True):
        left.semilogy(np.arange(1, len(values) + 1), values / values[0], color=colour)
        left.text(x, y, label, color=colour, fontsize=9)
    left.semilogy(np.arange(1, len(noise) + 1), noise / noise[0], color=NEUTRAL, linestyle="--")
    left.text(75, 0.47, "noise", color="#777777", fontsize=9)
    left.set(
        xlabel="index of the singular value", ylabel="relative to the largest", ylim=(1e-3, 1.5)
    )
    places = np.arange(len(ranks))
    right.plot(places, losses, "o-", color=RIGHT)
    right.set(
        xticks=places,
        xlabel="rank that is kept",
        ylabel="loss at sea, nats a token",
        ylim=(0, None),
    )
    right.set_xticklabels([str(each) for each in ranks])
    show(
        fig,
        "Left: singular values of three changes fall below a third within the first twenty, those "
        "of noise only after seventy. "
        "Right: the loss on tales of the sea falls steeply with the rank kept and is nearly flat "
        "from 16 on.",
    )


def alpha(ranks, moves: dict):
    """How far a first step moves the logits, over the rank, for three factors."""
    fig, ax = new(6.4, 3)
    for (name, values), colour in zip(moves.items(), (WRONG, COLOURS["D"], RIGHT), strict=True):
        ax.loglog(ranks, values, "o-", color=colour)
        ax.text(ranks[-1] * 1.1, values[-1], name, color=colour, va="center", fontsize=9)
    ax.set(xlabel="rank r", ylabel="change of the logits", xlim=(0.9, 130), xticks=ranks)
    ax.set_xticklabels([str(each) for each in ranks])
    ax.minorticks_off()
    show(
        fig,
        "The change of the logits at a first step over ranks 1 to 64, both axes logarithmic. With "
        "a factor of 1 it grows with "
        "the rank, with 4 divided by the root it grows less, with 16 divided by the rank it is "
        "nearly level.",
    )


def learning(curves: dict):
    """Loss on the new texts and on the old ones, step by step."""
    fig, (left, right) = new(7.6, 3, columns=2)
    for (name, curve), colour in zip(curves.items(), (COLOURS["D"], RIGHT), strict=True):
        steps, sea, land = zip(*curve, strict=True)
        left.plot(steps, sea, "o-", markersize=3, color=colour)
        right.plot(steps, land, "o-", markersize=3, color=colour)
        lora = name.startswith("LoRA")
        left.text(12, 1.45 if lora else 0.4, name, color=colour, fontsize=9)
        right.text(17 if lora else 29, 0.88 if lora else 0.73, name, color=colour, fontsize=9)
    left.set(
        xlabel="step", ylabel="nats a token", title="tales of the sea: learned", ylim=(0, None)
    )
    right.set(xlabel="step", title="stories on land: forgotten", ylim=(0, 1))
    show(
        fig,
        "Two panels over fifty steps, one curve for training all weights and one for LoRA. The "
        "loss on tales of the sea falls "
        "from above 3 to about a half. The loss on ordinary stories rises from 0.3 to more than "
        "twice that, in both.",
    )


def targets(found: dict):
    """Loss after the same steps for several choices of matrices: name -> (weights trained,
    loss).
    """
    fig, ax = new(6.4, 2.5)
    names = list(found)
    losses = [loss for _, loss in found.values()]
    ax.barh(
        names,
        losses,
        color=[RIGHT if name == "all seven" else NEUTRAL for name in names],
        height=0.6,
    )
    for i, (count, loss) in enumerate(found.values()):
        ax.text(loss + 0.03, i, f"{count:,} weights", va="center", fontsize=9, color="#666666")
    ax.set(xlabel="loss at sea after 25 steps, nats a token", xlim=(0, 1.3 * max(losses)))
    ax.invert_yaxis()
    ax.grid(axis="y")
    show(
        fig,
        "Horizontal bars of the loss for adapters of about 28,000 weights each. On wq and wk alone "
        "it is largest by far, then "
        "wv and wo; gate and up, down alone, and all seven matrices do best and much alike.",
    )
