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
    """What training keeps, in gigabytes: everything, LoRA beside bfloat16, LoRA beside four
    bits.
    """
    fig, axes = new(7.6, 2.8, columns=len(sizes))
    names = ["all weights", "LoRA, base\nin bfloat16", "LoRA, base\nin 4 bits"]
    for ax, (name, values) in zip(axes, sizes.items(), strict=True):
        few = [0, trained[name], trained[name]]
        base = [value - part for value, part in zip(values, few, strict=True)]
        ax.barh(names, base, color=[WRONG, RIGHT, RIGHT], height=0.6)
        ax.barh(names, few, left=base, color=COLOURS["D"], height=0.6)
        for i, value in enumerate(values):
            text = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
            ax.text(value + 0.02 * max(values), i, text, va="center", fontsize=9)
        ax.set(title=name, xlim=(0, 1.3 * max(values)), xlabel="GB")
        ax.invert_yaxis()
        ax.grid(False)
        ax.locator_params(axis="x", nbins=3)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    show(
        fig,
        "Bars for SmolLM2, 8B and 405B. Training all weights keeps 2.2, 128 and 6,494 GB; with "
        "LoRA beside bfloat16 0.3, 16 and "
        "817 GB, beside four bits 0.1, 5.4 and 259 GB. The adapter's own part is a thin end of the "
        "bars.",
    )


def rank(sigmas: dict, noise, ranks, losses):
    """Singular values of real changes beside noise; and what is learned when only the first are
    kept.
    """
    fig, (left, right) = new(7.6, 3, columns=2)
    for (name, values), colour in zip(
        sigmas.items(), (COLOURS["T"], COLOURS["K"], COLOURS["F"]), strict=True
    ):
        left.semilogy(np.arange(1, len(values) + 1), values / values[0], color=colour, label=name)
    left.semilogy(
        np.arange(1, len(noise) + 1), noise / noise[0], color=NEUTRAL, linestyle="--", label="noise"
    )
    left.set(
        xlabel="number of the singular value", ylabel="size beside the first", ylim=(1e-3, 1.5)
    )
    left.legend(fontsize=8, loc="lower left")
    places = np.arange(len(ranks))
    right.plot(places, losses, "o-", color=RIGHT)
    right.set(xticks=places, xlabel="rank that is kept", ylabel="loss at sea", ylim=(0, None))
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
        left.plot(steps, sea, color=colour, label=name)
        right.plot(steps, land, color=colour, label=name)
    left.set(
        xlabel="step", ylabel="nats a token", title="tales of the sea: learned", ylim=(0, None)
    )
    right.set(xlabel="step", title="stories on land: forgotten", ylim=(0, None))
    left.legend()
    show(
        fig,
        "Two panels over fifty steps, one curve for training all weights and one for LoRA. The "
        "loss on tales of the sea falls "
        "from above 3 to about a half. The loss on ordinary stories rises from 0.3 to more than "
        "twice that, in both.",
    )


def targets(found: dict):
    """Loss after the same steps for several choices of matrices: name -> (numbers trained,
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
        ax.text(loss + 0.03, i, f"{count:,} numbers", va="center", fontsize=9, color="#666666")
    ax.set(xlabel="loss at sea after 25 steps", xlim=(0, 1.3 * max(losses)))
    ax.invert_yaxis()
    ax.grid(axis="y")
    show(
        fig,
        "Horizontal bars of the loss for adapters of about 28,000 numbers each. On wq and wk alone "
        "it is largest by far, then "
        "wv and wo; gate and up, down alone, and all seven matrices do best and much alike.",
    )
