"""Figures of chapter 10a."""

import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def bare(ax, **settings):
    """Axes without ticks, grid and spines."""
    ax.set(xticks=[], yticks=[], **settings)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def masked(tokens, before, after, title):
    """Probabilities of tokens without and with a mask, side by side."""
    fig, ax = new(7.0, 2.6)
    x = np.arange(len(tokens))
    ax.bar(x - 0.2, before, 0.38, color=NEUTRAL, label="the model's")
    ax.bar(x + 0.2, after, 0.38, color=RIGHT, label="under the mask")
    for at, value in zip(x, after, strict=True):
        if value == 0:
            ax.text(at + 0.2, 0.01, "0", ha="center", fontsize=9, color=RIGHT)
    ax.set(xticks=x, ylabel="probability", title=title)
    ax.set_xticklabels([repr(token) for token in tokens])
    ax.grid(axis="x", visible=False)
    ax.legend()
    pairs = zip(tokens, before, after, strict=True)
    parts = ", ".join(f"{token!r} {a:.2f} to {b:.2f}" for token, a, b in pairs)
    show(fig, f"Bars: probabilities of the next token without a mask and with it: {parts}.")


def automaton(places, edges, ends, alt):
    """States as circles at (x, y), double where the text may end; edges (from, to, label)."""
    fig, ax = new(7.2, 2.9)
    for name, (x, y) in places.items():
        ax.add_patch(
            Circle((x, y), 0.3, facecolor="white", edgecolor=RIGHT, linewidth=1.5, zorder=3)
        )
        if name in ends:
            ax.add_patch(Circle((x, y), 0.24, fill=False, edgecolor=RIGHT, zorder=4))
        ax.text(x, y, name, ha="center", va="center", zorder=5)
    for start, end, label in edges:
        (a, b), (c, d) = places[start], places[end]
        if start == end:
            arrow = FancyArrowPatch(
                (a - 0.14, b + 0.27), (a + 0.14, b + 0.27), connectionstyle="arc3,rad=-1.9",
                arrowstyle="-|>", mutation_scale=10, color="#555555",
            )  # fmt: skip
            ax.text(a, b + 0.72, label, ha="center", fontsize=9)
        else:
            arrow = FancyArrowPatch(
                (a, b), (c, d), shrinkA=23, shrinkB=23, arrowstyle="-|>", mutation_scale=11,
                color="#555555",
            )  # fmt: skip
            ax.text(0.62 * a + 0.38 * c, 0.62 * b + 0.38 * d + 0.12, label, ha="center", fontsize=9)
        ax.add_patch(arrow)
    xs, ys = zip(*places.values(), strict=True)
    bare(
        ax, xlim=(min(xs) - 0.6, max(xs) + 0.6), ylim=(min(ys) - 0.5, max(ys) + 1.1), aspect="equal"
    )
    show(fig, alt)


def trie(layers, names, alt):
    """A small trie from left to right; layers: lists of (parent's place, byte, alive); names: (layer,
    place) -> token.
    """
    fig, ax = new(7.2, 3.0)
    heights = [[0.0]]
    for layer in layers:
        heights.append(list(np.linspace(-1, 1, len(layer)) if len(layer) > 1 else [0.0]))
    ax.add_patch(Circle((0, 0), 0.06, color="#222222"))
    for depth, layer in enumerate(layers, 1):
        for place, (parent, char, alive) in enumerate(layer):
            x, y, colour = 1.2 * depth, heights[depth][place], RIGHT if alive else NEUTRAL
            ax.plot([x - 1.2, x], [heights[depth - 1][parent], y], color=colour, zorder=1,
                    linestyle="-" if alive else ":")  # fmt: skip
            ax.add_patch(Circle((x, y), 0.11, facecolor="white", edgecolor=colour, zorder=2))
            ax.text(x, y, char, ha="center", va="center", fontsize=9, color=colour, zorder=3)
            if (depth, place) in names:
                ax.text(x, y + 0.17, names[depth, place], ha="center", fontsize=9, color=colour)
    bare(ax, xlim=(-0.2, 1.2 * len(layers) + 0.9), ylim=(-1.2, 1.2))
    show(fig, alt)


def depths(nodes, bytes_of_tokens):
    """Nodes of the trie in each layer, against the tokens that are so long."""
    fig, ax = new(7.0, 2.6)
    x = np.arange(1, len(nodes) + 1)
    ax.bar(x - 0.2, bytes_of_tokens, 0.4, color=NEUTRAL, label="token by token")
    ax.bar(x + 0.2, nodes, 0.4, color=RIGHT, label="in the trie")
    ax.set(xlabel="byte of the token", ylabel="steps", xticks=x)
    ax.legend()
    ax.grid(axis="x", visible=False)
    show(
        fig,
        f"Bars: steps of the automaton for each byte of the tokens. Token by token "
        f"{sum(bytes_of_tokens):,}, in the trie {sum(nodes):,}: the first layers are nearly free.",
    )


def forcing(names, forced, conditioned):
    """The same texts under a mask and under the model given that the text is allowed."""
    fig, ax = new(6.0, 2.5)
    x = np.arange(len(names))
    ax.bar(x - 0.2, forced, 0.38, color=WRONG, label="masked at each step")
    ax.bar(x + 0.2, conditioned, 0.38, color=RIGHT, label="the model's, given that it fits")
    ax.set(xticks=x, ylabel="probability", ylim=(0, 1.25))
    ax.set_xticklabels(names)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper center", ncols=2)
    pairs = zip(names, forced, conditioned, strict=True)
    parts = ", ".join(f"{name} {a:.2f} against {b:.2f}" for name, a, b in pairs)
    show(fig, f"Bars: probability of each allowed text, masked against conditioned: {parts}.")


def passes(names, plain, drafted):
    """Passes through the model with and without drafts of what is forced."""
    fig, ax = new(7.0, 2.4)
    y = np.arange(len(names))
    ax.barh(y + 0.2, plain, 0.38, color=NEUTRAL, label="one id a pass")
    ax.barh(y - 0.2, drafted, 0.38, color=RIGHT, label="what is forced as a draft")
    ax.set(yticks=y, xlabel="passes after the prompt's")
    ax.set_yticklabels(names)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, 1.25), ncols=2)
    pairs = zip(names, plain, drafted, strict=True)
    parts = ", ".join(f"{name} {a} and {b}" for name, a, b in pairs)
    show(fig, f"Bars: passes through the model without and with drafts: {parts}.")


def nesting(deep, unrolled, stacked):
    """How many expressions nested arrays take, written out and with a stack."""
    fig, ax = new(6.4, 2.7)
    ax.plot(deep, unrolled, "o-", color=WRONG, label="written out as a regular expression")
    ax.plot(deep, stacked, "s-", color=RIGHT, label="a rule and a stack")
    ax.set(xlabel="depth of the nesting", ylabel="expressions", yscale="log", xticks=deep)
    ax.legend()
    show(
        fig,
        f"On a logarithmic axis: written out to depth {deep[-1]} nested arrays take {unrolled[-1]:,} "
        f"expressions and doubles with each level; with a stack they take {stacked[-1]} at any depth.",
    )


def stacks(rows):
    """What must still come, as stacks of boxes, the top on the left; rows: (text so far, names)."""
    fig, ax = new(7.4, 0.5 + 0.42 * len(rows))
    for y, (text, names) in enumerate(reversed(rows)):
        ax.text(-0.15, y + 0.35, text, ha="right", va="center", family="monospace", fontsize=9)
        for x, name in enumerate(names):
            colour = COLOURS["T"] if x == 0 else COLOURS["S"]
            ax.add_patch(Rectangle((x, y), 0.94, 0.7, facecolor=colour, alpha=0.35))
            ax.text(x + 0.47, y + 0.35, name, ha="center", va="center", fontsize=9)
    most = max(len(names) for _, names in rows)
    bare(ax, xlim=(-1.6, most + 0.1), ylim=(-0.1, len(rows)))
    parts = "; ".join(f"after {text!r}: {', '.join(names) or 'nothing'}" for text, names in rows)
    show(fig, f"What must still come, the top of the stack first. {parts}.")


def calls(names, values, most):
    """How many of the answers are calls that fit."""
    fig, ax = new(6.0, 2.0)
    ax.barh(names, values, 0.6, color=[WRONG, RIGHT])
    ax.set(xlim=(0, most), xlabel=f"of {most} answers", xticks=range(most + 1))
    ax.grid(axis="y", visible=False)
    parts = "; ".join(
        f"{name}: {value} of {most}" for name, value in zip(names, values, strict=True)
    )
    show(fig, f"Bars: answers that are a call of a declared function and fit its schema. {parts}.")
