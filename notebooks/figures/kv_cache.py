"""Figures of chapter 8."""

import numpy as np
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def bare(ax):
    """Axes without frame, ticks or grid."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def box(ax, x, y, colour, text="", alpha=1.0, **style):
    """A unit square at column x and row y, with a word in it."""
    ax.add_patch(Rectangle((x, y), 0.92, 0.86, facecolor=colour, alpha=alpha, edgecolor="white"))
    ax.text(x + 0.46, y + 0.43, text, ha="center", va="center", fontsize=9, **style)


def operations(n, totals):
    """Operations to write n tokens with 8B, with everything computed again and with keys and values
    kept.
    """
    fig, ax = new(6.4, 3)
    for (name, total), colour in zip(totals.items(), (WRONG, RIGHT), strict=True):
        ax.loglog(n, total, color=colour)
        ax.text(n[-1] * 1.1, total[-1], name, color=colour, va="center")
    ax.set(
        xlabel="tokens written",
        ylabel="operations in total",
        xlim=(1, 2.2e4),
        ylim=(5e9, 4e18),
    )
    show(
        fig,
        "Operations to write a text with Llama 3.1 8B on logarithmic axes: from the same point at "
        "one token, the line of "
        "computing again rises twice as steeply and is some four thousand times higher at 8,192 "
        "tokens.",
    )


def steps(count):
    """Which tokens' keys and values each step computes, and which it finds in the cache."""
    fig, axes = new(7.4, 2.6, columns=2)
    for ax, title in zip(axes, ("computed again", "kept"), strict=True):
        for step in range(count):
            for token in range(step + 1):
                newest = token == step
                if newest:
                    box(ax, token, step, RIGHT, "k v", color="white")
                elif title == "kept":
                    box(ax, token, step, COLOURS["S"], "", 0.35)
                else:
                    box(ax, token, step, WRONG, "k v", 0.8, color="white")
        ax.set(xlim=(-1.6, count + 0.2), ylim=(count + 0.1, -0.7), title=title)
        bare(ax)
        for i in range(count):
            ax.text(-0.15, i + 0.43, f"step {i + 1}", ha="right", va="center", fontsize=8)
            ax.text(i + 0.46, -0.2, f"token {i + 1}", ha="center", va="center", fontsize=8)
    show(
        fig,
        "Two triangles of five steps and five tokens. Left: every step computes the keys and "
        "values of all tokens so far "
        "again. Right: each step computes those of its newest token only, on the diagonal, and "
        "finds the others kept.",
    )


def wrong(curves, start):
    """How far the logits are from the right ones at each position: a panel for each wrong cache,
    the right one in all of them; start: the prompt's length.
    """
    (_, good), *others = curves.items()
    fig, axes = new(7.4, 4.4, rows=2, columns=3, sharex=True, sharey=True)
    for ax, (name, values) in zip(axes.flat, others, strict=False):
        for line, colour in ((values, WRONG), (good, RIGHT)):
            line = np.maximum(line, 8e-6)
            ax.semilogy(np.arange(len(line)), line, "o-", markersize=2.5, linewidth=1, color=colour)
        ax.axvspan(-1, start - 0.5, color="#f0f0f0", zorder=0)
        ax.set_title(name.replace(": ", "\n"), color=WRONG)
        ax.set(ylim=(4e-6, 300), xlim=(-1, len(good)))
    axes[0][0].text(start - 1.2, 3e-3, "prompt", ha="right", fontsize=9, color="#555555")
    axes[0][0].text(start + 0.3, 3e-3, "one by one", fontsize=9, color="#555555")
    axes[0][0].text(start + 0.3, 1.2e-4, "the right cache", color=RIGHT, fontsize=9)
    axes[-1][-1].axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel("largest error of a logit")
    for ax in (*axes[1][:2], axes[0][2]):
        ax.set_xlabel("position")
        ax.tick_params(labelbottom=True)
    show(
        fig,
        "Five panels, one for each wrong cache: the largest error of a logit by position, "
        "logarithmic. The right cache stays below 0.0003 in all of them. The five wrong ones are "
        "right up to the end of the prompt and jump to between 0.3 and 40 there, though two of "
        "them have almost the right loss.",
    )


def chunks(length, sizes, made):
    """The square of scores, and the part of it that chunks of several sizes compute."""
    fig, axes = new(7.4, 2.8, columns=len(sizes))
    for ax, size, (_, total) in zip(axes, sizes, made, strict=True):
        ax.add_patch(Rectangle((0, 0), length, length, facecolor="#f4f4f4", edgecolor="none"))
        for start in range(0, length, size):
            ax.add_patch(
                Rectangle(
                    (0, start),
                    start + size,
                    size,
                    facecolor=COLOURS["S"],
                    alpha=0.55,
                    edgecolor="white",
                )
            )
        ax.plot([0, length], [0, length], color="#222222", linewidth=1)
        share = total / length**2
        ax.set(
            xlim=(0, length),
            ylim=(length, 0),
            aspect="equal",
            title=f"chunks of {size}:\n{share:.0%} computed",
        )
        ax.set(xticks=[0, length], yticks=[0, length], xlabel="keys")
        ax.grid(False)
    axes[0].set_ylabel("queries")
    show(
        fig,
        "The square of queries and keys with its diagonal. One chunk computes all of it, four "
        "chunks a staircase of 62 per "
        "cent, sixteen chunks a fine staircase of 53 per cent that hugs the diagonal.",
    )


def padding(lengths):
    """Rows of different lengths, padded on the right and on the left; numbers are positions, N is
    the next token's slot.
    """
    fig, axes = new(7.4, 2.3, columns=2)
    longest = max(lengths)
    for ax, title in zip(axes, ("padding on the right", "padding on the left"), strict=True):
        for row, length in enumerate(lengths):
            first = 0 if title == "padding on the right" else longest - length
            for slot in range(longest):
                inside = first <= slot < first + length
                box(
                    ax,
                    slot,
                    row,
                    COLOURS["S"] if inside else "#dddddd",
                    str(slot - first) if inside else "",
                )
            hole = title == "padding on the right" and length < longest
            box(ax, longest, row, WRONG if hole else RIGHT, "next", color="white")
        ax.set(xlim=(-0.2, longest + 1.2), ylim=(len(lengths) + 0.1, -0.2), title=title)
        bare(ax)
    show(
        fig,
        "Three rows of 5, 2 and 4 tokens. Padding on the right: the next token is separated from "
        "the short rows by a hole. Padding "
        "on the left: all rows end in the same slot, positions count from each row's first token, the "
        "next token follows.",
    )


def row_mask(mask, n_padding):
    """The mask of one row with padding on the left."""
    fig, ax = new(4.0, 3)
    T, S = mask.shape
    for t in range(T):
        for s in range(S):
            seen, pad = bool(mask[t, s]), t < n_padding
            box(
                ax,
                s,
                t,
                (NEUTRAL if pad else COLOURS["S"]) if seen else "#f4f4f4",
                "sees" if seen else "",
            )
    for i in range(S):
        name = "padding" if i < n_padding else str(i - n_padding)
        ax.text(i + 0.46, -0.25, name, ha="center", fontsize=8)
        ax.text(-0.15, i + 0.43, name, ha="right", va="center", fontsize=8)
    ax.set(xlim=(-1.1, S), ylim=(T + 0.1, -0.7), title="which query (row) sees which key (column)")
    bare(ax)
    show(
        fig,
        "A mask of four queries and four keys whose first two are padding: padding sees only itself, "
        "token 0 sees itself, "
        "token 1 sees tokens 0 and 1, and no token sees the padding.",
    )


def memory(table, full):
    """Size of the cache against the length of the text: a panel per model, with the weights as a
    dashed line.
    """
    fig, axes = new(7.4, 3.2, columns=len(table), sharey=True)
    tokens = np.array([128, full])
    for ax, (name, (per_token, weights, group)) in zip(axes, table.items(), strict=True):
        ax.loglog(tokens, per_token * tokens / 2**30, color=RIGHT)
        ax.loglog(tokens, group * per_token * tokens / 2**30, ":", color=WRONG, linewidth=1.5)
        ax.axhline(weights / 2**30, color="#555555", linestyle="--", linewidth=1)
        ax.text(110, weights / 2**30 * 1.15, "weights", color="#555555", fontsize=9, va="bottom")
        ax.plot([full], [per_token * full / 2**30], "o", color=RIGHT, markersize=4)
        ax.set(xlabel="tokens", title=f"{name}: {per_token * full / 2**30:.0f} GiB when full")
        ax.set(xlim=(90, full * 1.6), ylim=(0.01, 3000))
    axes[0].text(5e3, 0.25, "cache", color=RIGHT, fontsize=9)
    axes[0].text(3e3, 4, "ungrouped", color=WRONG, fontsize=9, ha="right")
    axes[0].set_ylabel("GiB in bfloat16")
    show(
        fig,
        "Cache size against tokens for 8B, 70B and 405B on logarithmic axes, with the weights as "
        "dashed lines. At 131,072 "
        "tokens the cache of 8B, 16 GiB, meets its weights; those of 70B and 405B stay below "
        "theirs. Caches without grouped queries, dotted, lie 4, 8 and 16 times higher: those of "
        "all three models reach above the weights.",
    )
