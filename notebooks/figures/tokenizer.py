"""Figures of chapter 1."""

import matplotlib.pyplot as plt

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


# neighbouring tokens, told apart
PASTELS = ["#bcdcf0", "#fbe3b5", "#bfe5d6", "#efd3e2", "#d9d9d9", "#f6cdb4"]


def visible(token) -> str:
    """A token as it can be drawn: spaces and newlines shown, bytes that are no whole character in
    hexadecimal.
    """
    if isinstance(token, bytes):
        try:
            token = token.decode()
        except UnicodeDecodeError:
            return token.hex()
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")


def strip(ax, tokens, y, size=9, colours=PASTELS, width=0.092):
    """One row of coloured boxes from x = 0; returns where it ends. Width: one character, in inches
    of the axis.
    """
    x = 0.0
    for i, token in enumerate(tokens):
        text = visible(token)
        step = width * len(text) + 0.05
        ax.add_patch(
            plt.Rectangle(
                (x, y), step - 0.015, 0.2, facecolor=colours[i % len(colours)], edgecolor="none"
            )
        )
        ax.text(
            x + (step - 0.015) / 2,
            y + 0.1,
            text,
            ha="center",
            va="center",
            family="monospace",
            fontsize=size,
        )
        x += step
    return x


def tokens(rows, alt, title="", note=None):
    """Rows of coloured tokens, one box each: {label: tokens}. note: {label: text at the end of that
    row}.
    """
    height = 0.3 * len(rows)
    fig, ax = new(7.6, height + (0.45 if title else 0.2))
    margin = 0.085 * max(map(len, rows)) + 0.15
    end = 0.0
    for i, (label, row) in enumerate(rows.items()):
        y = height - 0.3 * (i + 1)
        ax.text(-0.1, y + 0.1, label, ha="right", va="center", fontsize=9)
        x = strip(ax, row, y)
        if note:
            ax.text(x + 0.08, y + 0.1, note[label], va="center", fontsize=8, color="#777777")
            x += 0.08 + 0.075 * len(note[label])
        end = max(end, x)
    ax.set(xlim=(-margin, max(end, 7.4 - margin)), ylim=(-0.1, height), title=title)
    ax.axis("off")
    show(fig, alt)


def utf8(characters):
    """The bytes of some characters as bits: which only mark the length, and which spell the
    character's number.
    """
    fig, ax = new(7.4, 0.46 * len(characters) + 0.5)
    for row, (name, data) in enumerate(characters.items()):
        y = len(characters) - row
        ax.text(-0.3, y + 0.3, name, ha="right", va="center", fontsize=9)
        for i, byte in enumerate(data):
            bits = f"{byte:08b}"
            fixed = bits.index("0") + 1 if i == 0 else 2  # 0, 110, 1110, 11110 lead; 10 follows
            for j, bit in enumerate(bits):
                colour = "#f6cdb4" if j < fixed else "#bcdcf0"
                ax.add_patch(
                    plt.Rectangle((9.4 * i + j, y), 1, 0.6, facecolor=colour, edgecolor="white")
                )
                ax.text(
                    9.4 * i + j + 0.5,
                    y + 0.28,
                    bit,
                    ha="center",
                    va="center",
                    family="monospace",
                    fontsize=9,
                )
            ax.text(
                9.4 * i + 4,
                y - 0.17,
                f"{byte} = 0x{byte:02X}",
                ha="center",
                va="center",
                fontsize=7,
                color="#777777",
            )
    ax.set(
        xlim=(-6.5, 38),
        ylim=(0.6, len(characters) + 0.75),
        title="orange: marks   blue: the character's number",
    )
    ax.axis("off")
    show(
        fig,
        "A has one byte beginning with 0; é two, beginning with 110 and 10; 你 three, beginning "
        "with 1110, 10, 10; "
        "the emoji four, beginning with 11110 and three times 10. The remaining bits hold the "
        "character's number.",
    )


def pair_counts(steps):
    """For each of the first merges: all pairs with their counts, the one that is joined in blue."""
    fig, axes = new(7.6, 2.7, columns=len(steps))
    for ax, (number, (counts, best)) in zip(axes, enumerate(steps, 1), strict=True):
        pairs = sorted(counts, key=lambda pair: (counts[pair], [255 - b for b in b" ".join(pair)]))[
            -8:
        ]
        labels = [f"{visible(a)} {visible(b)}" for a, b in pairs]
        colours = [RIGHT if pair == best else "#d9d9d9" for pair in pairs]
        ax.barh(range(len(pairs)), [counts[pair] for pair in pairs], color=colours)
        ax.set_yticks(range(len(pairs)), labels, family="monospace", fontsize=8)
        ax.set(title=f"merge {number}: {visible(best[0] + best[1])}", xlabel="count", xlim=(0, 6))
        ax.grid(axis="y", visible=False)
    show(
        fig,
        "Pair counts in 'the then there these them'. Merge 1 joins h and e (5 times, tied with t "
        "h), "
        "merge 2 joins t and he (5), merge 3 a space and the (4).",
    )


def compression(sizes, curves, points):
    """Tokens per 100 characters against the size of the vocabulary; points: other ways to cut the
    text.
    """
    fig, ax = new(7, 3.2)
    for (label, values), colour in zip(
        curves.items(), (RIGHT, COLOURS["D"], COLOURS["H"]), strict=True
    ):
        ax.plot(sizes, values, "o-", markersize=3, color=colour)
        y = values[-1] - 4 if "\n" in (label := label.replace(" (", "\n(")) else values[-1] + 3
        ax.text(sizes[-1] * 1.04, y, label, color=colour, va="center")
    for label, (x, y) in points.items():
        ax.plot(x, y, "s", color=NEUTRAL)
        ax.annotate(
            label, (x, y), xytext=(7, 3), textcoords="offset points", fontsize=9, color="#666666"
        )
    ax.set_xscale("log")
    ax.set_xticks([50, 100, 256, 400, 700], ["50", "100", "256", "400", "700"])
    ax.minorticks_off()
    ax.set(
        xlabel="entries in the vocabulary (V)", ylabel="tokens per 100 characters", ylim=(0, None)
    )
    show(
        fig,
        "Tokens per 100 characters fall as the vocabulary grows from 256 to 700, steeply at first: "
        "on the story itself "
        "from 100 to 25, on another English text to 42, on Russian text not at all: the curve "
        "stays flat at 181.",
    )


def alternatives(rows, names):
    """Chunks of several texts, each coloured by the alternative of the pattern that cut it."""
    height = 0.3 * len(rows)
    fig, ax = new(7.6, height + 0.95)
    for i, chunks in enumerate(rows):
        x, y = 0.0, height - 0.3 * (i + 1)
        for text, kind in chunks:
            step = 0.092 * len(visible(text)) + 0.05
            ax.add_patch(
                plt.Rectangle((x, y), step - 0.015, 0.2, facecolor=PALETTE[kind], edgecolor="none")
            )
            ax.text(
                x + step / 2 - 0.01,
                y + 0.1,
                visible(text),
                ha="center",
                va="center",
                family="monospace",
                fontsize=9,
            )
            x += step
    for kind, name in enumerate(names):
        x, y = 1.85 * (kind % 4), -0.32 - 0.26 * (kind // 4)
        ax.add_patch(plt.Rectangle((x, y), 0.16, 0.16, facecolor=PALETTE[kind]))
        ax.text(x + 0.22, y + 0.08, name, va="center", fontsize=8.5)
    ax.set(xlim=(-0.05, 7.4), ylim=(-0.68, height))
    ax.axis("off")
    show(
        fig,
        "Four texts cut into chunks, every chunk coloured by the alternative of the Llama 3 "
        "pattern that matched it.",
    )


PALETTE = ["#f6cdb4", "#bcdcf0", "#fbe3b5", "#bfe5d6", "#efd3e2", "#cfc3e0", "#d9d9d9"]


def work(lengths, naive, queue):
    """Look-ups of a pair's rank per chunk: the loop that starts over after each merge, and the one
    with a queue.
    """
    fig, ax = new(6.4, 3)
    ax.loglog(
        lengths,
        naive,
        "o-",
        markersize=3,
        color=WRONG,
    )
    ax.loglog(lengths, queue, "o-", markersize=3, color=RIGHT)
    ax.text(380, 1e5, "every pair again\nafter each merge", color=WRONG, ha="right")
    ax.text(400, 350, "a queue of pairs", color=RIGHT)
    ax.set(xlabel="bytes in one chunk", ylabel="ranks looked up")
    show(
        fig,
        "Log-log plot of rank look-ups against the length of a chunk: the simple loop's line is "
        "much steeper than the "
        "queue's and reaches 350,000 at 2,048 bytes, where the queue needs 5,000.",
    )


def lengths(histogram, blocks):
    """How long the tokens are, and how their length grows with the rank."""
    fig, (left, right) = new(7.6, 2.8, columns=2)
    left.semilogy(list(histogram), list(histogram.values()), ".", markersize=4, color=COLOURS["V"])
    left.set(title="tokens by length", xlabel="bytes", ylabel="tokens")
    for (name, values), colour in zip(blocks.items(), (RIGHT, NEUTRAL), strict=True):
        right.plot([4 * i + 2 for i in range(len(values))], values, color=colour)
        right.text(127, {"bytes": 5.2, "characters": 2.4}[name], name, color=colour, ha="right")
    right.set(title="average length by rank", xlabel="rank (thousands)", ylim=(0, None))
    right.axvline(100.256, color="#cccccc", linewidth=1)
    show(
        fig,
        "Left, log scale: most of the 128,000 tokens have 2 to 10 bytes, a thin tail reaches 128. "
        "Right: the average "
        "length rises from 4 to 7 with the rank; at 100,256 it drops, to 3 characters and to over "
        "5 bytes, and then "
        "bytes rise beyond 7, characters to 4.",
    )


def scripts(counts, added):
    """How many tokens hold at least one character of a script, and how many of them lie beyond the
    seam.
    """
    fig, ax = new(7, 3.4)
    names = sorted(counts, key=counts.get, reverse=True)
    values = [counts[name] for name in names]
    for i, name in enumerate(names):
        if added[name]:
            ax.plot([added[name], counts[name]], [i, i], color="#cccccc", linewidth=2, zorder=1)
            ax.scatter(added[name], i, s=34, color=COLOURS["D"], zorder=2)
        if counts[name]:
            ax.scatter(counts[name], i, s=18, color=COLOURS["V"], zorder=3)
    for i, value in enumerate(values):
        ax.text(value * 1.25 if value else 1.0, i, f"{value:,}", va="center", fontsize=8)
    ax.text(counts[names[0]], -0.55, "all 128,000", color=COLOURS["V"], ha="center", fontsize=8)
    ax.text(added[names[0]], -0.55, "rank 100,256 and up", color="#a06a00", ha="center", fontsize=8)
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xlabel="tokens with a character of the script (log scale)",
        ylim=(len(names) - 0.4, -1.1),
        xlim=(0.9, 400_000),
    )
    ax.grid(axis="y", visible=False)
    show(
        fig,
        "Dots on a log scale: "
        + ", ".join(f"{name} {value:,}" for name, value in counts.items())
        + ".",
    )


def languages(counts, characters, names):
    """Tokens for one paragraph in many languages under two vocabularies."""
    order = sorted(counts, key=lambda language: counts[language][0])
    fig, (left, right) = new(7.6, 4, columns=2, sharey=True, width_ratios=[3, 2])
    for row, language in enumerate(order):
        small, large = counts[language]
        left.plot([large, small], [row, row], color="#cccccc", zorder=1)
        right.plot(
            [large / characters[language], small / characters[language]],
            [row, row],
            color="#cccccc",
            zorder=1,
        )
    for which, colour in ((0, COLOURS["D"]), (1, COLOURS["V"])):
        left.scatter(
            [counts[n][which] for n in order],
            range(len(order)),
            s=26,
            color=colour,
            label=names[which],
            zorder=2,
        )
        right.scatter(
            [counts[n][which] / characters[n] for n in order],
            range(len(order)),
            s=26,
            color=colour,
            zorder=2,
        )
    left.set_yticks(range(len(order)), order)
    left.set(title="tokens for the same paragraph", xlabel="tokens", xlim=(0, None))
    right.set(title="tokens per character", xlim=(0, None))
    left.legend(loc="lower right")
    show(
        fig,
        "One paragraph in "
        + str(len(order))
        + " languages, tokens under SmolLM2's and Llama 3's vocabulary: "
        + ", ".join(f"{n} {counts[n][0]} and {counts[n][1]}" for n in order)
        + ".",
    )


def bits(texts):
    """Bits per character that a model needs for several texts, each cut in several ways."""
    fig, ax = new(6.8, 3)
    ways = list(next(iter(texts.values())))
    for i, (way, colour) in enumerate(zip(ways, (RIGHT, WRONG, COLOURS["K"]), strict=True)):
        places = [row + 0.26 * (i - 1) for row in range(len(texts))]
        values = [text[way] for text in texts.values()]
        ax.barh(places, values, height=0.23, color=colour, label=way)
        for place, value in zip(places, values, strict=True):
            ax.text(value + 0.03, place, f"{value:.2f}", va="center", fontsize=8)
    ax.set_yticks(range(len(texts)), list(texts))
    ax.set(
        xlabel="bits per character (less is better)", ylim=(len(texts) - 0.5, -0.5), xlim=(0, 4.2)
    )
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right")
    show(
        fig,
        "Bits per character of SmolLM2. "
        + " ".join(
            f"{name}: " + ", ".join(f"{w} {v:.2f}" for w, v in text.items()) + "."
            for name, text in texts.items()
        ),
    )
