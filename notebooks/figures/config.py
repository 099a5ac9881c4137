"""Figures of chapter 0."""

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


LETTERS = {
    "B": "sequences in a batch",
    "T": "tokens in a sequence (queries)",
    "S": "positions they may look at (keys)",
    "D": "numbers in a token's vector",
    "L": "blocks",
    "H": "query heads",
    "K": "key/value heads",
    "W": "numbers in a head",
    "F": "width of the feed-forward layer",
    "V": "entries of the vocabulary",
}
PASTEL = ["#cfe3f3", "#fbe3bd", "#cdebe0", "#f3dbe8", "#e4dcef", "#f6d3bd"]
PARTS = {"embedding": "V", "attention": "H", "feed-forward": "F", "norms": "D", "head": "L"}


def visible(token):
    """A token's text with its white space made visible."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\xa0", "␣").replace("\t", "⇥")


def bare(ax):
    """No axes, no grid."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def legend():
    """One letter and one colour per dimension."""
    fig, ax = new(7.4, 1.7)
    for i, (letter, meaning) in enumerate(LETTERS.items()):
        x, y = divmod(i, 5)
        ax.text(
            x + 0.02,
            -y,
            letter,
            color="white",
            weight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": COLOURS[letter], "edgecolor": "none"},
        )
        ax.text(x + 0.08, -y, meaning, va="center")
    ax.set(xlim=(-0.05, 1.85), ylim=(-4.6, 0.6))
    bare(ax)
    show(
        fig,
        "Ten coloured letters and their meanings: "
        + ", ".join(f"{a} {b}" for a, b in LETTERS.items())
        + ".",
    )


class Sketch:
    """Boxes and arrows on one axes, in inches."""

    def __init__(self, width, height):
        self.fig, self.ax = new(width, height)
        self.ax.set(xlim=(0, width), ylim=(0, height))
        bare(self.ax)

    def box(self, x, y, text, chapter="", colour="#ffffff", width=2.1, height=0.42, gap=0.08):
        """A box centred at (x, y), and the chapter that builds it."""
        corner = (x - width / 2, y - height / 2)
        self.ax.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour,
                edgecolor="#555555",
                zorder=3,
            )
        )
        self.ax.text(x, y, text, ha="center", va="center", zorder=4, fontsize=9.5)
        if chapter:
            self.ax.text(
                x + width / 2 + gap,
                y,
                chapter,
                va="center",
                fontsize=8.5,
                color="#777777",
                style="italic",
            )

    def arrow(self, points, shape="", side=0.08):
        """An arrow through points, with the shape of what flows along it beside its first
        stretch.
        """
        for start, end in zip(points[:-1], points[1:], strict=True):
            style = "-|>" if end == points[-1] else "-"
            self.ax.add_patch(
                FancyArrowPatch(
                    start,
                    end,
                    arrowstyle=style,
                    mutation_scale=10,
                    shrinkA=0,
                    shrinkB=0,
                    color="#555555",
                    linewidth=1.1,
                    zorder=2,
                )
            )
        if shape:
            (x0, y0), (x1, y1) = points[0], points[1]
            self.letters((x0 + x1) / 2 + side, (y0 + y1) / 2, shape)

    def letters(self, x, y, shape):
        """A shape such as (B, T, D) as a row of letters, every dimension on its colour; other text
        as it is.
        """
        if not shape.startswith("("):
            self.ax.text(x, y, shape, color="#555555", fontsize=9, va="center", family="monospace")
            return
        for i, letter in enumerate(shape.strip("()").split(", ")):
            corner = (x - 0.07 + 0.175 * i, y - 0.09)
            self.ax.add_patch(
                FancyBboxPatch(
                    corner,
                    0.15,
                    0.18,
                    boxstyle="round,pad=0,rounding_size=0.03",
                    facecolor=COLOURS[letter],
                    edgecolor="none",
                    zorder=4,
                )
            )
            self.ax.text(
                x + 0.005 + 0.175 * i,
                y - 0.005,
                letter,
                color="white",
                fontsize=8.5,
                va="center",
                ha="center",
                weight="bold",
                zorder=5,
            )


def architecture():
    """Text to text: the whole model on the left, one block opened on the right."""
    s = Sketch(8.9, 7.6)
    X, pale = 1.45, {letter: COLOURS[letter] + "33" for letter in COLOURS}
    steps = [
        (0.35, '"The moon has"', "", "#ffffff", ""),
        (1.25, "tokenizer", "chapter 1", pale["V"], "str"),
        (2.2, "embedding", "chapter 2", pale["D"], "(B, T)"),
        (3.55, "block", "chapter 6", pale["L"], "(B, T, D)"),
        (4.9, "RMSNorm", "chapter 2", pale["D"], "(B, T, D)"),
        (5.75, "head", "chapter 6", pale["V"], "(B, T, D)"),
        (6.6, "sample one id", "chapter 9", pale["T"], "(B, T, V)"),
        (7.3, '" a"', "", "#ffffff", ""),
    ]
    for (y0, *_), (y1, *_rest, shape) in zip(steps[:-1], steps[1:], strict=True):
        s.arrow([(X, y0 + 0.21), (X, y1 - 0.21)], shape, side=0.14)
    for y, text, chapter, colour, _ in steps:
        s.box(X, y, text, chapter, colour, width=1.6, gap=0.2)
    s.ax.add_patch(
        FancyBboxPatch(
            (X - 0.93, 3.13),
            1.86,
            0.84,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="none",
            edgecolor=COLOURS["L"],
            linestyle="--",
            linewidth=1.5,
        )
    )
    s.ax.text(X - 0.93, 4.05, "L times", color=COLOURS["L"], fontsize=10, weight="bold")
    s.arrow([(X - 0.8, 7.3), (0.2, 7.3), (0.2, 0.35), (X - 0.8, 0.35)])
    s.ax.text(
        0.27, 2.75, "append, and again", rotation=90, fontsize=8.5, color="#777777", va="center"
    )
    block(s, 5.1, pale)
    show(
        s.fig,
        "Left, from bottom to top: text, tokenizer (chapter 1), embedding (2), a block repeated L "
        "times (6), RMSNorm (2), "
        "head (6), sampling of one id (9), which is appended to the text. Right, one block: "
        "RMSNorm, then queries, keys "
        "and values, RoPE on queries and keys, attention, output matrix, added to the stream; then "
        "RMSNorm, gate and up, "
        "their product, down, added to the stream.",
    )


def block(s, X, pale):
    """The right half of the picture: two residual steps."""
    left, mid, right = X - 0.15, X + 1.25, X + 2.65
    s.ax.add_patch(
        FancyBboxPatch(
            (X - 1.35, 0.55),
            5.05,
            6.5,
            boxstyle="round,pad=0,rounding_size=0.15",
            facecolor="#fafafa",
            edgecolor=COLOURS["L"],
            linestyle="--",
            linewidth=1.5,
        )
    )
    s.ax.text(X + 2.85, 6.83, "one block", color=COLOURS["L"], fontsize=10)
    stream = X - 0.95
    s.arrow([(stream, 0.25), (stream, 7.4)])
    s.letters(stream + 0.12, 0.36, "(B, T, D)")
    s.ax.text(
        stream - 0.2,
        2.2,
        "residual stream",
        rotation=90,
        fontsize=8.5,
        color="#777777",
        va="center",
    )
    s.arrow([(stream, 0.9), (mid - 0.6, 0.9)])
    s.box(mid, 0.9, "RMSNorm", "2", pale["D"], width=1.2)
    for x, name, shape in ((left, "queries", "(B, H, T, W)"), (mid, "keys", "(B, K, S, W)"),
                           (right, "values", "(B, K, S, W)")):  # fmt: skip
        s.arrow([(mid, 1.11), (mid, 1.28), (x, 1.28), (x, 1.43)])
        s.box(
            x,
            1.62,
            name,
            "",
            pale["H"] if name == "queries" else pale["K"],
            width=1.05,
            height=0.38,
        )
        s.arrow([(x, 1.81), (x, 2.3 if name != "values" else 3.0)])
        s.letters(x + 0.1, 2.02, shape)
    s.box(left, 2.49, "RoPE", "", pale["W"], width=1.05, height=0.38)
    s.box(mid, 2.49, "RoPE", "3", pale["W"], width=1.05, height=0.38)
    s.arrow([(left, 2.68), (left, 3.0)])
    s.arrow([(mid, 2.68), (mid, 3.0)])
    s.box(mid, 3.2, "attention: softmax(q·k) mixes values", "", pale["S"], width=3.85, height=0.4)
    s.ax.text(mid + 2.0, 3.2, "4", fontsize=8.5, color="#777777", style="italic")
    s.arrow([(mid, 3.4), (mid, 3.75), (stream + 0.13, 3.75)])
    s.letters(mid + 0.12, 3.6, "(B, H, T, W)")
    s.ax.text(stream + 0.5, 3.84, "output matrix", fontsize=8.5, color="#777777")
    s.arrow([(stream, 4.25), (mid - 0.6, 4.25)])
    s.box(mid, 4.25, "RMSNorm", "2", pale["D"], width=1.2)
    for x, name in ((left + 0.6, "gate, SiLU"), (right - 0.6, "up")):
        s.arrow([(mid, 4.46), (mid, 4.6), (x, 4.6), (x, 4.77)])
        s.box(x, 4.97, name, "5" if name == "up" else "", pale["F"], width=1.15, height=0.4)
        s.letters(x + 0.1, 5.3, "(B, T, F)")
        s.arrow([(x, 5.17), (x, 5.62), (mid + (0.13 if x > mid else -0.13), 5.62)])
    s.arrow([(mid, 5.75), (mid, 5.93)])
    s.box(mid, 6.13, "down", "5", pale["F"], width=1.15, height=0.4)
    s.arrow([(mid, 6.33), (mid, 6.55), (stream + 0.13, 6.55)])
    for x, y, sign in ((stream, 3.75, "+"), (stream, 6.55, "+"), (mid, 5.62, "×")):
        s.ax.text(x, y, sign, ha="center", va="center", zorder=5, fontsize=11,
                  bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "#555555"})  # fmt: skip


def pieces(tokens, ids, width=8.2):
    """The tokens of a text as coloured boxes with their ids below."""
    unit, gap, rows, x = 0.082, 0.16, [[]], 0.0
    for token, id in zip(tokens, ids, strict=True):
        w = max(len(visible(token)) * unit + 0.1, len(str(id)) * 0.062 + 0.06)
        if x + w > width - 0.1:
            rows, x = [*rows, []], 0.0
        rows[-1].append((x, w, visible(token), id))
        x += w + gap * 0.4
    fig, ax = new(width, 0.62 * len(rows) + 0.1)
    for r, row in enumerate(rows):
        for i, (x, w, text, id) in enumerate(row):
            colour = PASTEL[(i + r) % len(PASTEL)]
            ax.add_patch(
                FancyBboxPatch(
                    (x, -r * 0.62),
                    w,
                    0.28,
                    boxstyle="round,pad=0,rounding_size=0.05",
                    facecolor=colour,
                    edgecolor="none",
                )
            )
            ax.text(
                x + w / 2,
                -r * 0.62 + 0.14,
                text,
                ha="center",
                va="center",
                family="monospace",
                fontsize=9,
            )
            ax.text(
                x + w / 2,
                -r * 0.62 - 0.11,
                str(id),
                ha="center",
                va="center",
                fontsize=7.5,
                color="#666666",
            )
    ax.set(xlim=(-0.02, width), ylim=(-0.62 * (len(rows) - 1) - 0.24, 0.34))
    bare(ax)
    show(
        fig,
        f"{len(ids)} coloured boxes, one per token, ␣ for a space, with ids {ids[0]} to {ids[-1]} "
        f"below.",
    )


def vectors(rows, tokens, neighbours):
    """Above: the first entries of the rows that a sentence picks. Below: nearest rows of some
    words.
    """
    fig, axes = new(7.6, 5.0, rows=2, columns=1, height_ratios=[1.3, 1])
    limit = np.abs(rows).max()
    image = axes[0].imshow(rows, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes[0].set_yticks(
        range(len(tokens)), [visible(t) for t in tokens], family="monospace", fontsize=8
    )
    axes[0].set(title=f"(T, D): the first {rows.shape[1]} of D = 576 entries", xticks=[])
    axes[0].grid(False)
    fig.colorbar(image, ax=axes[0], pad=0.01)
    x, ticks = 0, []
    for i, (word, found) in enumerate(neighbours.items()):
        for token, cosine in found:
            axes[1].bar(x, cosine, color=(COLOURS["D"], COLOURS["T"], COLOURS["H"])[i])
            ticks.append((x, visible(token)))
            x += 1
        axes[1].text(
            x - len(found), 1.0, f"nearest to {visible(word)}", fontsize=9, family="monospace"
        )
        x += 1
    axes[1].set_xticks(
        *zip(*ticks, strict=True), rotation=45, ha="right", family="monospace", fontsize=8
    )
    axes[1].set(ylabel="cosine", ylim=(0, 1.15))
    said = "; ".join(
        f"{w.strip()}: " + ", ".join(t.strip() for t, _ in f) for w, f in neighbours.items()
    )
    show(
        fig,
        f"A heat map of fifteen token vectors with equal rows for equal tokens; nearest rows by "
        f"cosine, {said}.",
    )


def attention(weights, tokens, groups, title):
    """A heat map per head over the real tokens, a row of maps per key/value head."""
    H = len(weights)
    fig, axes = new(8.2, 8.4, rows=groups, columns=H // groups, sharex=True, sharey=True)
    names = [visible(t) for t in tokens]
    for h, ax in enumerate(axes.flat):
        ax.imshow(weights[h], cmap="Blues", vmin=0, vmax=1)
        ax.set(title=f"head {h}, kv head {h // (H // groups)}")
        ax.set_xticks(range(len(names)), names, rotation=90, family="monospace", fontsize=7)
        ax.set_yticks(range(len(names)), names, family="monospace", fontsize=7)
        ax.grid(False)
    fig.suptitle(title, fontsize=10, x=0.01, ha="left")
    show(
        fig,
        "Nine 15 by 15 maps, empty above the diagonal. Head 6 is dark on the diagonal, head 1 just "
        "below it; in heads 0 "
        "and 5 the last token looks at the second 'light'; after the semicolon, many tokens look "
        "back at it.",
    )


def gate(active, tokens, curve):
    """Left: the strongest units per token. Right: how few units carry most of the activity."""
    fig, (left, right) = new(7.8, 3.4, columns=2, width_ratios=[1.7, 1])
    limit = np.abs(active).max()
    left.imshow(active, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    left.set_yticks(
        range(len(tokens)), [visible(t) for t in tokens], family="monospace", fontsize=7.5
    )
    left.set(
        title=f"silu(gate) × up of {active.shape[1]} units",
        xlabel="units, strongest anywhere first",
        xticks=[],
    )
    left.grid(False)
    right.plot(range(1, len(curve) + 1), curve, color=COLOURS["F"])
    reached = int((curve < 0.9).sum()) + 1
    right.plot([0, reached, reached], [0.9, 0.9, 0], color=NEUTRAL, linewidth=1, linestyle="--")
    right.set(
        title="share of the squared activity",
        xlabel="strongest units of F = 1536",
        ylim=(0, 1.02),
        xlim=(0, 1536),
    )
    right.text(reached + 30, 0.45, f"{reached} units:\n90 %", color="#666666")
    show(
        fig,
        "Left, units times tokens: each unit is strong for few tokens. "
        f"Right: about {round(reached, -1)} of 1536 units carry 90 %.",
    )


def lens(layers, top, probs, final, tokens):
    """What would be predicted after some blocks (rows) at every position (columns)."""
    fig, ax = new(10.2, 5.2)
    for r, layer in enumerate(layers):
        for t, token in enumerate(top[layer]):
            same = token == final[t]
            ax.add_patch(
                FancyBboxPatch(
                    (t, r),
                    1,
                    1,
                    boxstyle="square,pad=0",
                    facecolor=RIGHT if same else NEUTRAL,
                    alpha=0.08 + 0.6 * probs[layer][t],
                    edgecolor="none",
                )
            )
            ax.text(
                t + 0.5,
                r + 0.5,
                visible(token)[:9],
                ha="center",
                va="center",
                fontsize=8.5,
                family="monospace",
            )
    ax.set(xlim=(0, len(tokens)), ylim=(0, len(layers)))
    bare(ax)
    ax.set_yticks(
        [r + 0.5 for r in range(len(layers))],
        [f"{i} block" + "s" * (i > 1) if i else "embedding" for i in layers],
    )
    ax.set_xticks(
        [t + 0.5 for t in range(len(tokens))],
        [visible(t) for t in tokens],
        family="monospace",
        fontsize=8,
    )
    ax.set(
        title="likeliest next token after so many blocks; blue: already the final prediction; "
        "darker: more probable",
        xlabel="token read last",
    )
    show(
        fig,
        "A table of the likeliest next token at each of fifteen positions. After the embedding: "
        "the token itself. "
        "In the middle blocks: commas, full stops and spaces. Most final predictions, in blue, "
        "appear after 24 blocks; "
        "' sun' only after all 30.",
    )


def rank(ranks, probs, word):
    """A word's place in the order of all tokens after each block, and its probability."""
    fig, (left, right) = new(7.4, 2.7, columns=2)
    left.semilogy(range(len(ranks)), ranks, "o-", markersize=3, color=COLOURS["L"])
    left.set(
        title=f"place of {visible(word)} among V tokens",
        xlabel="blocks applied",
        ylim=(3000, 0.8),
        yticks=[1, 10, 100, 1000],
        yticklabels=["1", "10", "100", "1,000"],
    )
    left.minorticks_off()
    right.plot(range(len(probs)), probs, "o-", markersize=3, color=RIGHT)
    right.set(title=f"probability of {visible(word)}", xlabel="blocks applied")
    show(
        fig,
        f"{word.strip()} stays between places 400 and 1,200 for 21 blocks, then climbs to place 1 "
        f"in the last nine.",
    )


def bars(tokens, probs, title):
    """Horizontal bars: the likeliest next tokens."""
    fig, ax = new(6, 0.26 * len(tokens) + 0.7)
    ax.barh(range(len(tokens)), probs, color=[RIGHT] + [NEUTRAL] * (len(tokens) - 1))
    ax.set_yticks(range(len(tokens)), [visible(t) for t in tokens], family="monospace")
    for y, p in enumerate(probs):
        ax.text(p + 0.005, y, f"{p:.3f}", va="center", fontsize=8.5)
    ax.set(title=title, xlabel="probability")
    ax.invert_yaxis()
    said = ", ".join(f"{t.strip()} {p:.2f}" for t, p in zip(tokens[:3], probs, strict=False))
    show(fig, f"Horizontal bars of the likeliest next tokens: {said}, then seven below 0.05.")


def temperatures(tokens, rows):
    """The same logits at three temperatures; the last bar is everything else together."""
    fig, axes = new(8.6, 2.9, columns=len(rows), sharey=True)
    for ax, (temperature, probs) in zip(axes, rows.items(), strict=True):
        ax.bar(range(len(probs)), probs, color=[RIGHT] * len(tokens) + [NEUTRAL])
        names = [*(visible(t) for t in tokens), "all others"]
        ax.set_xticks(range(len(probs)), names, rotation=60, ha="right", fontsize=8)
        ax.set(title=f"temperature {temperature}")
    axes[0].set_ylabel("probability")
    said = "; ".join(f"{t}: sun {p[0]:.2f}, all others {p[-1]:.2f}" for t, p in rows.items())
    show(fig, f"Three bar charts of the same eight tokens and the rest, by temperature. {said}.")


def surgery(drop, swap, lines):
    """Loss after leaving out each block, and after exchanging each pair of neighbours."""
    fig, axes = new(8.6, 3.2, columns=2, sharey=True)
    for ax, values, title in (
        (axes[0], drop, "one block left out"),
        (axes[1], swap, "two neighbours exchanged"),
    ):
        ax.bar(range(len(values)), values, color=COLOURS["L"], alpha=0.75)
        for (label, y), colour in zip(lines.items(), (RIGHT, NEUTRAL, WRONG), strict=True):
            ax.axhline(y, color=colour, linewidth=1.3, linestyle="--")
            if ax is axes[1]:
                ax.text(30.3, y, label, color=colour, fontsize=8.5, va="center")
        ax.set(title=title, xlabel="block" if ax is axes[0] else "first block of the pair",
               xlim=(-1, 30), ylim=(0, 12.6))  # fmt: skip
    axes[0].set_ylabel("loss, nats per token")
    show(
        fig,
        f"Left: without block 0 the loss is above that of guessing, without block 1 {drop[1]:.1f}; "
        f"most middle blocks cost little. "
        f"Right: exchanging blocks 0 and 1 gives {swap[0]:.1f}; most middle pairs cost little.",
    )


def settings(losses, reference, guess):
    """Loss of the same weights with other settings."""
    fig, ax = new(7.4, 0.32 * len(losses) + 0.8)
    for y, loss in enumerate(losses.values()):
        ax.barh(
            y, loss, color=RIGHT if y == 0 else WRONG if abs(loss - reference) > 0.1 else NEUTRAL
        )
        ax.text(loss + 0.06, y, f"{loss:.2f}", va="center", fontsize=9)
    ax.axvline(reference, color=RIGHT, linewidth=1, linestyle="--")
    ax.axvline(guess, color=NEUTRAL, linewidth=1, linestyle="--")
    ax.text(
        guess - 0.1, len(losses) / 2 - 0.5, "guessing", color="#777777", fontsize=8.5, ha="right"
    )
    ax.set_yticks(range(len(losses)), list(losses))
    ax.set(xlabel="loss, nats per token", xlim=(0, guess + 1))
    ax.invert_yaxis()
    said = ", ".join(f"{label} {loss:.2f}" for label, loss in losses.items())
    show(fig, f"Losses of the same weights: {said}; guessing {guess:.2f}.")


def parameters(counts):
    """Where the parameters sit, as shares, one bar per size."""
    fig, ax = new(7.8, 3.0)
    for y, parts in enumerate(counts.values()):
        total, left = sum(parts.values()), 0.0
        for part, number in parts.items():
            share = number / total
            ax.barh(
                y,
                share,
                left=left,
                color=COLOURS[PARTS[part]],
                edgecolor="white",
                height=0.62,
            )
            if (y, part) in ((0, "embedding"), (0, "attention"), (0, "feed-forward"), (1, "head")):
                ax.text(
                    left + share / 2,
                    y - 0.42,
                    part,
                    ha="center",
                    va="bottom",
                    color=COLOURS[PARTS[part]],
                    weight="bold",
                )
            if share > 0.04:
                ax.text(
                    left + share / 2,
                    y,
                    f"{share:.1%}",
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=9,
                )
            left += share
        ax.text(1.01, y, f"{total:,}", va="center", fontsize=8.5)
    ax.set_yticks(range(len(counts)), list(counts))
    ax.set(xlim=(0, 1.28), xticks=[], ylim=(len(counts) - 0.5, -0.75))
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
    said = "; ".join(
        name + " " + ", ".join(f"{p} {n / sum(parts.values()):.1%}" for p, n in parts.items())
        for name, parts in counts.items()
    )
    show(fig, f"Stacked bars of parameter shares. {said}.")


def decided(blocks, n_layers):
    """How many positions have their final prediction for good from each block on."""
    fig, ax = new(6.6, 2.4)
    ax.hist(blocks, bins=np.arange(-0.5, n_layers + 1.5), color=COLOURS["L"])
    ax.set(
        xlabel="blocks after which the likeliest token no longer changes",
        ylabel="positions",
        xlim=(-1, n_layers + 1),
    )
    show(fig, f"Histogram: most positions are decided in the last few of {n_layers} blocks.")
