"""Figures of chapter 14a."""

import matplotlib.pyplot as plt

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show
from figures.tokenizer import visible


ASKED, READ = "#bcdcf0", "#eeeeee"


def who(lines, alt, width=88):
    """Tokens in lines, as text runs: those that the loss asks for in blue, the others grey.

    lines: {label: (tokens, asked)}.
    """
    rows = []
    for label, (tokens, asked) in lines.items():
        row, size = [], 0
        for token, mine in zip(tokens, asked, strict=True):
            text = visible(token)
            if size + len(text) + 0.6 > width:
                rows.append((label, row))
                label, row, size = "", [], 0
            row.append((text, mine))
            size += len(text) + 0.6
        rows.append((label, row))
    fig, ax = new(7.6, 0.3 * len(rows) + 0.15)
    for i, (label, row) in enumerate(rows):
        x, y = 0.0, len(rows) - i
        ax.text(-1, y, label, ha="right", va="center", fontsize=9)
        for text, mine in row:
            ax.add_patch(
                plt.Rectangle(
                    (x, y - 0.38), len(text) + 0.4, 0.76, facecolor=ASKED if mine else READ, lw=0
                )
            )
            ax.text(
                x + len(text) / 2 + 0.2,
                y,
                text,
                ha="center",
                va="center",
                family="monospace",
                fontsize=7.5,
            )
            x += len(text) + 0.6
    left = max((len(label) for label in lines), default=0)
    ax.set(xlim=(-left - 1.5, width + 1), ylim=(0.4, len(rows) + 0.6))
    ax.axis("off")
    show(fig, alt)


def rows(packings, length, alt):
    """Two ways to lay conversations into rows. packings: {title: rows of (number, how many ids,
    whole)}.
    """
    fig, axes = new(7.4, 1.9, 1, len(packings), sharey=True)
    colours = [COLOURS[letter] for letter in "TDHKSFL"]
    for ax, (title, packed) in zip(axes, packings.items(), strict=True):
        for y, row in enumerate(packed):
            x = 0
            for number, size, whole in row:
                colour = colours[number % len(colours)]
                ax.barh(-y, size, left=x, height=0.72, color=colour, alpha=0.55, edgecolor="white")
                ax.barh(
                    -y,
                    size,
                    left=x,
                    height=0.72,
                    color="none",
                    hatch="" if whole else "////",
                    edgecolor="white",
                )
                ax.text(x + size / 2, -y, str(number), ha="center", va="center", fontsize=9)
                x += size
        ax.axvline(length, color=NEUTRAL, lw=1, ls=":")
        ax.set(title=title, yticks=[], xlabel="ids of a row", xlim=(0, length + 0.6))
        ax.grid(False)
    show(fig, alt)


def surprise(tokens, losses, asked, alt):
    """The loss of every token of a conversation, in nats; those of the assistant in blue."""
    fig, ax = new(7.6, 2.7)
    ax.bar(
        range(len(tokens)), losses, color=[RIGHT if mine else NEUTRAL for mine in asked], width=0.8
    )
    ax.set(ylabel="loss, nats", xlim=(-0.7, len(tokens) - 0.3), ylim=(0, 1.15 * max(losses)))
    ax.set_xticks(
        range(len(tokens)),
        [visible(token) for token in tokens],
        rotation=90,
        fontsize=7,
        family="monospace",
    )
    ax.grid(axis="x", visible=False)
    first, top = list(asked).index(True), max(losses)
    ax.text(first - 1, 1.03 * top, "read", color="#777777", ha="right")
    ax.text(first - 0.4, 1.03 * top, "written by the assistant: targets", color=RIGHT)
    show(fig, alt)


def curves(runs, alt):
    """Loss by step, of several runs. runs: {label: losses}."""
    fig, ax = new(7.0, 2.8)
    for (label, losses), letter in zip(runs.items(), "TFHDK", strict=False):
        ax.plot(range(1, len(losses) + 1), losses, color=COLOURS[letter], lw=1.8)
        last = min(len(losses), 16)
        ax.annotate(
            label,
            (last, losses[last - 1]),
            (6, 2),
            textcoords="offset points",
            color=COLOURS[letter],
            fontsize=9,
        )
    ax.set(yscale="log", xlabel="step", ylabel="loss, nats a token")
    show(fig, alt)


def result(table, alt):
    """What was learned beside what was lost. table: {label: (right, of, loss on general answers,
    perplexity)}.
    """
    fig, axes = new(7.6, 0.36 * len(table) + 0.9, 1, 3, sharey=True)
    labels, values = list(table), list(table.values())
    columns = [[row[0] for row in values], [row[2] for row in values], [row[3] for row in values]]
    titles = [f"right, of {values[0][1]}", "general answers, nats", "perplexity of a text"]
    for ax, column, title, colour in zip(axes, columns, titles, (RIGHT, WRONG, WRONG), strict=True):
        bars = ax.barh(
            range(len(labels)), column, color=[NEUTRAL, *[colour] * (len(labels) - 1)], height=0.65
        )
        ax.bar_label(
            bars,
            fmt=lambda v: f"{v:.0f}" if v >= 10 or v == int(v) else f"{v:.1f}",
            padding=2,
            fontsize=8,
        )
        ax.set(title=title, xlim=(0, 1.18 * max(column)), xticks=[])
        ax.grid(False)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    show(fig, alt)
