"""Figures of chapter 4."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, numbers, show


def lookup(words, scores, weights, values, output):
    """One soft lookup from left to right: scores, weights, values, their weighted sum."""
    fig, axes = new(7.4, 2.3, columns=4, width_ratios=[1, 1, 2, 2])
    numbers(axes[0], [[s] for s in scores], title="scores (S,)", colour=COLOURS["S"])
    numbers(axes[1], [[w] for w in weights], "{:.2f}", title="weights (S,)", colour=COLOURS["T"])
    numbers(axes[2], values, title="values (S, W)", colour=COLOURS["W"])
    numbers(axes[3], [output], "{:.2f}", title="weighted sum (W,)", colour=COLOURS["W"])
    axes[0].set_yticks([i + 0.5 for i in range(len(words))], words)
    show(
        fig,
        "Scores 3, 0, 1 for dog, chased, cats become weights 0.84, 0.04, 0.11; the sum is (3.60, "
        "0.48).",
    )


def sharpness(factors, weights, words):
    """The weights of three keys against a factor on their scores."""
    fig, ax = new(6.4, 2.6)
    for word, line, dashes, (x, y) in zip(
        words,
        np.asarray(weights).T,
        ("-", "--", ":"),
        ((1.55, 0.86), (0.42, 0.1), (0.75, 0.2)),
        strict=True,
    ):
        ax.plot(factors, line, dashes, color=COLOURS["T"])
        ax.text(x, y, word, color=COLOURS["T"], ha="right" if word == "chased" else "left")
    ax.axvline(1, color="#cccccc", linewidth=1)
    ax.set(xlabel="scores times this factor", ylabel="weight", ylim=(-0.03, 1.03))
    show(
        fig,
        "At factor 0 all three weights are a third; as it grows, dog's goes to 1 and the others' "
        "to 0.",
    )


def scale(widths, spread, largest, gradient):
    """Spread of dot products, the largest weight and the softmax's slope against the head's width
    W.
    """
    fig, (left, middle, right) = new(7.8, 2.7, columns=3)
    left.loglog(widths, spread, "o", color=COLOURS["W"], label="measured")
    left.loglog(widths, np.sqrt(widths), color=NEUTRAL, linewidth=1, label="$\\sqrt{W}$")
    left.set(title="std of q · k", xlabel="W")
    left.minorticks_off()
    left.set_yticks([2, 10, 45], ["2", "10", "45"])
    left.legend()
    for ax, curves, title in (
        (middle, largest, "largest of 64 weights"),
        (right, gradient, "slope of softmax"),
    ):
        ax.plot(widths, curves["raw"], "o-", color=WRONG, markersize=3, label="raw scores")
        ax.plot(
            widths,
            curves["scaled"],
            "o-",
            color=RIGHT,
            markersize=3,
            label="divided by $\\sqrt{W}$",
        )
        ax.set(title=title, xlabel="W", xscale="log")
    middle.set(ylim=(0, 1.05))
    right.set(yscale="log")
    right.legend(loc="lower left")
    show(
        fig,
        "Left: the spread of dot products follows the root of W from 2 to 45. Middle: without "
        "division the largest of "
        "64 weights climbs towards 1, with it it stays near 0.1. Right: without it the slope falls "
        "to a millionth.",
    )


def masks(named):
    """Small boolean masks side by side, queries down, keys across; the correct one first."""
    fig, axes = new(2.45 * len(named), 2.7, columns=len(named))
    for i, (ax, (title, mask)) in enumerate(zip(axes, named.items(), strict=True)):
        grid(ax, np.asarray(mask), RIGHT if i == 0 else WRONG)
        ax.set_title(title, color="black" if i == 0 else WRONG)
    axes[0].set_ylabel("query (T)")
    show(
        fig,
        "Masks for five tokens: a lower triangle; the same with one more diagonal above; one "
        "diagonal fewer; full.",
    )


def alignment(right, wrong, n_cached):
    """Two masks for few queries and more keys: aligned at the lower right, and at the upper
    left.
    """
    fig, axes = new(7.4, 2.1, columns=2)
    for ax, mask, colour, title in (
        (axes[0], right, RIGHT, "last query sees the last key"),
        (axes[1], wrong, WRONG, "is_causal=True: first sees the first"),
    ):
        grid(ax, np.asarray(mask), colour)
        ax.axvline(n_cached, color="black", linewidth=1.2)
        ax.set_title(title)
        ax.set_xlabel("keys (S): old | new")
    axes[0].set_ylabel("new queries (T)")
    show(
        fig,
        "Three new queries, four old and three new keys. Left: each sees all old keys. Right: 1, 2 "
        "and 3 old keys.",
    )


def grid(ax, mask, colour):
    """A boolean mask as squares: filled where a query may look."""
    T, S = mask.shape
    ax.imshow(
        np.where(mask, 1.0, np.nan),
        cmap=ListedColormap([colour]),
        extent=(0, S, T, 0),
        vmin=0,
        vmax=1,
    )
    ax.set(xticks=range(S + 1), yticks=range(T + 1), aspect="equal", xlabel="key (S)")
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.grid(True, color="white" if mask.all() else "#cccccc")


def cheating(losses, floor):
    """Training loss on random tokens for three masks."""
    fig, ax = new(6.4, 2.9)
    ax.axhline(floor, color="#cccccc", linewidth=1)
    ax.text(30, floor - 0.28, "ln 16: nothing can be known", color="#888888")
    for (label, line), (colour, dashes), (x, y) in zip(
        losses.items(),
        ((RIGHT, "-"), (WRONG, "-"), (WRONG, ":")),
        ((45, 2.95), (23, 1.8), (2, 0.8)),
        strict=True,
    ):
        ax.plot(line, dashes, color=colour)
        ax.text(x, y, label, color=colour)
    ax.set(xlabel="training step", ylabel="next-token loss", ylim=(-0.1, 3.6))
    show(
        fig,
        "With the mask the loss stays at 2.77 for random tokens; without one, or one off, it falls "
        "to zero.",
    )


def after_softmax(right, wrong):
    """Weights masked before and after the softmax, with the sum of every row."""
    fig, axes = new(7.2, 2.6, columns=2)
    for ax, weights, title, colour in (
        (axes[0], right, "-inf before the softmax", RIGHT),
        (axes[1], wrong, "times 0 after it", WRONG),
    ):
        numbers(ax, weights, "{:.2f}", title=title, colour=colour)
        for i, row in enumerate(np.asarray(weights)):
            ax.text(len(row) + 0.15, i + 0.5, f"sum {row.sum():.2f}", va="center", fontsize=9)
        ax.set_xlim(0, len(weights) + 1.5)
    show(
        fig,
        "Left: four rows of a lower triangle, each with sum 1. Right: rows with sums below 1 "
        "except the last.",
    )


def heads(right, wrong, n_heads):
    """Which number of x (T, H*W) lands in which head: by view and transpose, and by view alone."""
    fig, axes = new(7.4, 2.7, columns=1 + n_heads, width_ratios=[1.9] + [1] * n_heads)
    T, W = right.shape[1:]
    entries = np.arange(T * n_heads * W).reshape(T, n_heads * W)
    tokens(axes[0], entries, T, n_heads * W)
    axes[0].set_title(f"x (T, H·W): {T} tokens")
    for h in range(n_heads):
        both = np.concatenate((right[h], wrong[h]))
        tokens(axes[1 + h], both, T, n_heads * W)
        axes[1 + h].axhline(T, color="white", linewidth=6)
        axes[1 + h].set_title(f"head {h}")
    axes[1].set_yticks([T / 2, 1.5 * T], ["unflatten,\ntranspose", "view\nalone"])
    show(
        fig,
        "Numbers 0 to 17, one colour per token. Split rightly each head has two numbers of every "
        "token; with view alone "
        "head 0 has all of token 0, head 1 all of token 1, head 2 all of token 2.",
    )


def tokens(ax, entries, T, width):
    """A grid of entry numbers, coloured by the token (row) that they came from."""
    shades = ("#cfe3f1", "#56B4E9", "#0072B2")
    rows, columns = np.asarray(entries).shape
    for i in range(rows):
        for j in range(columns):
            token = int(entries[i][j]) // width
            ax.add_patch(Rectangle((j, i), 1, 1, facecolor=shades[token], edgecolor="white"))
            colour = "white" if token == 2 else "black"
            ax.text(
                j + 0.5,
                i + 0.5,
                int(entries[i][j]),
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    bare(ax, (0, columns), (rows, 0))
    ax.set_aspect("equal")


def bare(ax, xlim, ylim):
    """No ticks, no grid, no frame."""
    ax.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def sharing(named):
    """Which query heads (top) read which kv head (bottom): {title: kv head of each query head}."""
    fig, axes = new(7.8, 1.9, columns=len(named))
    for ax, (title, owner) in zip(axes, named.items(), strict=True):
        H, K = len(owner), max(owner) + 1
        wrong = sorted(owner) != list(owner)
        places = [(k + 0.5) * H / K - 0.5 for k in range(K)]
        for h, k in enumerate(owner):
            ax.plot(
                [h, places[k]], [1, 0], color=WRONG if wrong else "#888888", linewidth=1, zorder=1
            )
        ax.scatter(range(H), [1] * H, s=85, color=COLOURS["H"], zorder=2)
        ax.scatter(places, [0] * K, s=85, color=COLOURS["K"], zorder=2)
        for x, y, label in [(h, 1, h) for h in range(H)] + [
            (x, 0, k) for k, x in enumerate(places)
        ]:
            ax.text(x, y, label, ha="center", va="center_baseline", color="white", fontsize=7)
        bare(ax, (-0.8, H - 0.2), (-0.4, 1.4))
        ax.set_title(title, color=WRONG if wrong else "black")
    axes[0].set_yticks([0, 1], ["kv heads", "query heads"])
    axes[0].tick_params(length=0)
    show(
        fig,
        "Nine query heads above, kv heads below: nine of them, one each; three, shared by "
        "neighbours 0-2, 3-5, 6-8; "
        "three, shared wrongly by every third query head; one for all.",
    )


def cache_sizes(names, grouped, multi):
    """Cache at full context in GiB per model: grouped, and with one kv head per query head."""
    fig, ax = new(6.6, 2.3)
    places = np.arange(len(names))
    ax.hlines(places, grouped, multi, color="#cccccc", linewidth=2, zorder=1)
    for sizes, colour, label, side in (
        (grouped, COLOURS["K"], "grouped: 8 kv heads", -1),
        (multi, COLOURS["H"], "one kv head per query head", 1),
    ):
        ax.scatter(sizes, places, s=60, color=colour, zorder=2)
        for y, size in zip(places, sizes, strict=True):
            ax.text(
                size * 1.15**side,
                y,
                f"{size:,.0f}",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=9,
            )
        x, ha = (sizes[0] * 1.1, "right") if side < 0 else (sizes[0] / 1.1, "left")
        ax.text(x, -0.42, label, color=colour, ha=ha, fontsize=9)
    ax.set(xscale="log", xlabel="GiB for 131,072 tokens", xlim=(4, 2000), ylim=(2.4, -0.75))
    ax.set_yticks(places, names)
    ax.grid(False, axis="y")
    show(
        fig,
        "Cache for the full context in GiB, grouped and not: 8B 16 and 64, 70B 40 and 320, 405B 63 "
        "and 1,008.",
    )


def cost(lengths, operations):
    """Operations per token by part of the block, against the length T."""
    fig, ax = new(6, 3)
    for (label, line), colour in zip(
        operations.items(), (COLOURS["D"], COLOURS["F"], COLOURS["S"]), strict=True
    ):
        line = np.array(line) / 1e6
        ax.loglog(lengths, line, color=colour)
        where = (lengths[0], line[0] * 1.25) if line[0] == line[-1] else (lengths[3], 5)
        ax.text(*where, label, color=colour, fontsize=9)
    ax.set(
        xlabel="T", ylabel="million operations per token", title="8B, one layer", ylim=(1, 5_000)
    )
    show(
        fig,
        "Projections and feed-forward are flat lines at 84 and 352 million operations per token; "
        "scores and mixing rise "
        "with T, cross the projections at 5,120 tokens and reach 2,147 million at 131,072.",
    )


def maps(words, named):
    """Attention maps of some heads for one sentence: queries down, keys across."""
    fig, axes = new(8, 3.4, columns=len(named), sharey=True)
    for ax, (title, weights) in zip(axes, named.items(), strict=True):
        ax.imshow(weights, vmin=0, vmax=1, cmap="Blues")
        ax.set(title=title)
        ax.set_xticks(range(len(words)), words, rotation=90, fontsize=9)
        ax.set_yticks(range(len(words)), words, fontsize=9)
        ax.grid(False)
        ax.tick_params(length=0)
    show(
        fig,
        "Four heads as squares of weights, queries down: one bright diagonal just below the main "
        "one; one bright first "
        "column; one along the main diagonal; one where was looks at dog.",
    )


def census(named):
    """A score of every head in the model: layers across, heads down."""
    fig, axes = new(7.6, 4.4, rows=len(named), sharex=True)
    for ax, (title, scores) in zip(axes, named.items(), strict=True):
        image = ax.imshow(np.asarray(scores).T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        ax.set(title=title, ylabel="head")
        ax.grid(False)
    axes[-1].set_xlabel("block")
    fig.colorbar(image, ax=axes, label="mean weight", shrink=0.6)
    show(
        fig,
        "All 270 heads as three grids. Previous token: four dark squares. First token: most heads "
        "of the later half. "
        "Induction: a handful in blocks 17 to 24.",
    )


def induction(weights, losses):
    """One head's map on a random sequence that is repeated, and the loss at every position."""
    fig, (left, right) = new(7.6, 3.1, columns=2, width_ratios=[1, 1.3])
    left.imshow(weights, vmin=0, vmax=1, cmap="Blues")
    left.set(title="block 18, head 6", xlabel="key (S)", ylabel="query (T)")
    left.grid(False)
    half = len(weights) // 2
    right.plot(range(1, len(losses) + 1), losses, "o-", markersize=3, color=COLOURS["T"])
    right.axvline(half, color="#cccccc", linewidth=1)
    right.set(
        title="loss of each token",
        xlabel="position; the repetition starts at the line",
        ylabel="next-token loss",
    )
    show(
        fig,
        "Left: in the second half a bright diagonal, each query looks 29 positions back. Right: "
        "the loss is about 15 "
        "in the first half and falls to about 3 some six tokens after the repetition starts.",
    )
