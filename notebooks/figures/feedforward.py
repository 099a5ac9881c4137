"""Figures of chapter 5."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, numbers, show


def xor(points, labels, hidden):
    """Four points no line can divide, and the same four after two ReLU units, where one line is
    enough.
    """
    fig, (left, right) = new(7, 3, columns=2)
    colours = [RIGHT if label else WRONG for label in labels]
    for ax, where, title in (
        (left, points, "the inputs"),
        (right, hidden, "after two ReLU units"),
    ):
        ax.scatter(where[:, 0], where[:, 1], c=colours, s=70, zorder=3)
        for (x, y), label in zip(where, labels, strict=True):
            ax.annotate(str(int(label)), (x, y), xytext=(7, 5), textcoords="offset points")
        ax.set(title=title, aspect="equal", xlim=(-0.4, 2.5), ylim=(-0.4, 1.5))
    line = np.array([-0.4, 2.5])
    right.plot(line, (line - 0.5) / 2, color=NEUTRAL, linestyle="--")
    left.set(xlabel="$x_0$", ylabel="$x_1$")
    right.set(xlabel="$h_0 = relu(x_0 + x_1)$", ylabel="$h_1 = relu(x_0 + x_1 - 1)$")
    show(
        fig,
        "Left: ones and zeros at opposite corners of a square. Right: the ones share a point, one "
        "line divides.",
    )


def activations(x, curves, slopes):
    """ReLU, GELU and SiLU, and their slopes."""
    fig, axes = new(7, 2.9, columns=2)
    colours = {"ReLU": NEUTRAL, "GELU": COLOURS["K"], "SiLU": RIGHT}
    for ax, values, title in zip(axes, (curves, slopes), ("value", "slope"), strict=True):
        for name, y in values.items():
            ax.plot(x, y, color=colours[name])
        ax.set(title=title, xlabel="z")
    for name, (x, y) in {"ReLU": (1.4, 2.0), "GELU": (0.1, -0.55), "SiLU": (-3.2, -0.55)}.items():
        axes[0].text(x, y, name, color=colours[name], ha="right" if name == "ReLU" else "left")
    axes[0].set_ylim(-0.8, 4.2)
    show(
        fig,
        "ReLU has a corner at zero; GELU and SiLU curve smoothly, dip slightly below zero and "
        "follow z above.",
    )


def product_surfaces(truth, relu, gated, errors):
    """x * y as 8 ReLU units fit it, as 2 gated units give it, and the error over the number of ReLU
    units.
    """
    fig, axes = new(7.6, 2.5, columns=4, width_ratios=[1, 1, 1, 1.4])
    for ax, values, title in zip(
        axes, (truth, relu, gated), ("x y", "8 ReLU units", "2 gated units"), strict=False
    ):
        ax.imshow(values, vmin=-4, vmax=4, extent=(-2, 2, -2, 2), origin="lower", cmap="PuOr")
        ax.set(title=title, xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.grid(False)
    axes[3].loglog(list(errors), list(errors.values()), "o-", color=NEUTRAL, markersize=3)
    axes[3].set(title="worst error of ReLU units", xlabel="units")
    show(
        fig,
        "A saddle; a faceted imitation of it by ReLU units; the gated units' copy looks like the "
        "original.",
    )


def variants(losses, baseline):
    """Next-token loss of the real model with the layer written wrongly."""
    fig, ax = new(6.4, 2.4)
    names = list(losses)
    ax.barh(
        names, losses.values(), color=[RIGHT if losses[n] <= baseline else WRONG for n in names]
    )
    for i, name in enumerate(names):
        ax.text(losses[name], i, f" {losses[name]:#.3g}", va="center")
    ax.invert_yaxis()
    ax.set(xlabel="loss per token on one paragraph, nats", xlim=(0, max(losses.values()) * 1.12))
    show(fig, "Bars: " + ", ".join(f"{name} {value:#.3g}" for name, value in losses.items()) + ".")


def gate_activity(histograms, edges, quiet):
    """How open the gates are: a histogram for three layers, and the share of nearly closed ones per
    layer.
    """
    fig, (left, right) = new(7.4, 2.9, columns=2)
    for alpha, (layer, counts) in zip((0.35, 0.65, 1.0), histograms.items(), strict=True):
        left.step(
            edges[:-1],
            counts,
            where="post",
            color=COLOURS["F"],
            alpha=alpha,
        )
        left.text(
            2.7,
            {0: 2e-1, 14: 8e-2, 28: 3.2e-2}[layer],
            f"block {layer}",
            color=COLOURS["F"],
            alpha=alpha,
        )
    left.set(title="silu(gate), all units and tokens", xlabel="value", yscale="log", ylabel="share")
    right.plot(quiet, "o-", color=COLOURS["L"], markersize=3)
    right.set(title="share of gates between -0.1 and 0.1", xlabel="block", ylim=(0, 1))
    show(
        fig,
        "Most gates lie near zero with a tail to the right; the share of nearly closed ones "
        "changes with depth.",
    )


def ablation(tried, baseline, attention, feedforward):
    """Loss when one block's attention, or one block's feed-forward layer, adds nothing."""
    fig, ax = new(7, 3)
    ax.plot(
        tried,
        attention,
        "o-",
        color=COLOURS["H"],
        markersize=3,
        label="without this block's attention",
    )
    ax.plot(
        tried,
        feedforward,
        "o-",
        color=COLOURS["F"],
        markersize=3,
        label="without this block's feed-forward layer",
    )
    ax.axhline(baseline, color=NEUTRAL, linestyle="--", label="nothing removed")
    ax.set(xlabel="block", ylabel="loss per token, nats")
    ax.legend()
    show(
        fig,
        "Loss after removing one part of one block: most removals cost little, the first blocks' "
        "cost most.",
    )


def shares(rows):
    """Share of a block's parameters in attention and in the feed-forward layer, per model size."""
    fig, ax = new(6.4, 2)
    for i, (_name, attention, feedforward) in enumerate(rows):
        total = attention + feedforward
        ax.barh(i, attention / total, color=COLOURS["H"], label="attention" if i == 0 else None)
        ax.barh(
            i,
            feedforward / total,
            left=attention / total,
            color=COLOURS["F"],
            label="feed-forward" if i == 0 else None,
        )
        ax.text(0.99, i, f"{feedforward / total:.0%}", ha="right", va="center", color="white")
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of one block's parameters")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
    show(fig, "; ".join(f"{name}: feed-forward {f / (a + f):.0%}" for name, a, f in rows))


def flow(x, gate, up, hidden, out):
    """The layer's five vectors for one token."""
    fig, axes = new(7.4, 1.7, columns=5, width_ratios=[2, 3, 3, 3, 2])
    steps = [
        ("x (D)", x, "D"),
        ("silu(gate) (F)", gate, "F"),
        ("up (F)", up, "F"),
        ("product (F)", hidden, "F"),
    ]
    for ax, (title, values, letter) in zip(axes, [*steps, ("down (D)", out, "D")], strict=True):
        numbers(ax, [values], fmt="{:.2g}", title=title, colour=COLOURS[letter], size=8)
    show(
        fig,
        "A vector of two numbers becomes three gates and three values, whose product comes back as "
        "two numbers.",
    )
