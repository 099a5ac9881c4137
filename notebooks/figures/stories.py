"""Figures of chapter 13a."""

import numpy as np

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def pairs(kept, children, things):
    """Which children and things never meet in a training story: kept (children, things), True where
    kept back.
    """
    fig, ax = new(7.6, 3.2)
    ax.imshow(np.array(kept).T, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    ax.set_xticks(range(len(children)), children, rotation=90, fontsize=8)
    ax.set_yticks(range(len(things)), things, fontsize=7)
    ax.grid(False)
    show(
        fig,
        "A table of forty children and twenty things. Each child has two marked things, in "
        "diagonal stripes, and every "
        "second row has no mark at all: these pairs occur in validation stories only.",
    )


def surprise(words, ideal, model=None, width=104):
    """A story as lines of words, above each word a bar: its surprise for the ideal reader and, taller
    behind it, for the model.
    """
    lines, line, used = [], [], 0
    for i, word in enumerate(words):
        if used + len(word) > width:
            lines, line, used = [*lines, line], [], 0
        line, used = [*line, (i, used, word)], used + len(word)
    lines.append(line)
    fig, axes = new(7.6, 0.62 * len(lines), rows=len(lines))
    for ax, line in zip(axes, lines, strict=True):
        for i, at, word in line:
            left, right = at + len(word) - len(word.lstrip()), at + len(word)
            ax.text(
                (left + right) / 2,
                -0.5,
                word.strip(),
                fontsize=8,
                va="top",
                ha="center",
                family="monospace",
            )
            bar = dict(x=(left + right) / 2, width=right - left)
            if model is not None:
                ax.bar(height=model[i], color=WRONG, **bar)
            ax.bar(height=ideal[i], color=RIGHT, **bar)
        ax.set(xlim=(0, width + 1), ylim=(-3.2, 5), yticks=[], xticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return fig


def curve(steps, losses, tried, floor):
    """The stored run: loss of every step, loss on held-out stories, and the grammar's floor."""
    fig, (left, right) = new(7.6, 2.9, columns=2)
    for ax in (left, right):
        ax.plot(steps, losses, color=NEUTRAL, linewidth=0.8)
        ax.plot(*zip(*tried, strict=True), "o-", color=RIGHT, markersize=4)
        ax.axhline(floor, color=WRONG, linestyle="--")
        ax.set(xlabel="step")
    left.set(ylabel="nats per token")
    right.set(ylim=(0.14, 0.8), xlim=(200, None))
    right.set_title("the same, enlarged")
    right.text(950, 0.46, "training, each step", color="#666666", fontsize=9)
    right.text(950, 0.41, "held-out stories", color=RIGHT, fontsize=9)
    right.text(1990, 0.15, "floor of the grammar", color=WRONG, fontsize=9, ha="right")
    show(
        fig,
        "The loss falls from 6.9 within 300 steps to 0.6, stands still near 0.5 from step 400 to "
        "750, falls to 0.3 at 1,000 "
        "and then ever more slowly to 0.265. The dashed floor lies at 0.188. Training and "
        "validation lie on one line.",
    )


def stream(layers, sizes):
    """Size of the stream after each layer at the start, for ways to draw the first weights."""
    fig, ax = new(6.4, 2.9)
    for (name, values), colour in zip(sizes.items(), (RIGHT, COLOURS["D"], WRONG), strict=True):
        ax.semilogy(layers, values, color=colour)
        ax.text(layers[-1] + 1, values[-1], name, color=colour, fontsize=9, va="center")
    ax.set(xlabel="layers", ylabel="size of the stream (rms)", ylim=(0.01, 4), xlim=(0, layers[-1]))
    ax.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    show(
        fig,
        "Three curves over 64 layers. Small weights with scaled writers stay near 0.02 to the end; "
        "small weights without it "
        "grow to ten times that; PyTorch's own initialisation starts at 1 and doubles.",
    )


def probe(slots, spent, chance, edges, right):
    """Left: what words cost that were told before, beside chance. Right: how often thing and colour
    are right, by distance.
    """
    fig, (left, right_ax) = new(7.6, 3.2, columns=2, width_ratios=[3, 2])
    x = np.arange(len(slots))
    left.bar(x, chance, color="#dddddd", width=0.8, label="to guess among all")
    left.bar(x, spent, color=WRONG, width=0.5, label="the model")
    left.set_xticks(x, slots, fontsize=8.5)
    left.set(ylabel="nats for a word already told", ylim=(0, 4.6))
    left.legend(fontsize=8)
    middles = np.arange(len(edges) - 1)
    for (name, shares), colour in zip(right.items(), (RIGHT, WRONG), strict=True):
        right_ax.plot(middles, shares, "o-", color=colour)
        right_ax.text(1.5, shares[1] + 0.05, name, color=colour, ha="center", fontsize=9)
    right_ax.set_xticks(middles, [f"{a}-{b - 1}" for a, b in zip(edges, edges[1:], strict=False)])
    right_ax.set(
        xlabel="tokens since it was last told",
        ylabel="right with more than even odds",
        ylim=(-0.05, 1.15),
    )
    show(
        fig,
        "Left: a thing, a child's or an animal's name that was told before costs the model next to "
        "nothing; a colour costs "
        "as much as guessing among ten, and so does a hiding place. Right: at every distance, the "
        "thing always gets more than "
        "half of the probability and the colour never.",
    )


def by_position(places, model, ideal):
    """Nats per token by position in a whole story, model and ideal reader, and the difference added
    up.
    """
    fig, (left, right) = new(7.6, 2.8, columns=2)
    left.plot(places, model, color=WRONG)
    left.plot(places, ideal, color=RIGHT)
    left.text(90, 0.2, "model", color=WRONG, fontsize=9)
    left.text(places[-1] + 4, 0.0, "ideal reader", color=RIGHT, fontsize=9, ha="right", va="top")
    left.set(xlabel="token of the story", ylabel="nats per token", ylim=(-0.12, None))
    right.plot(
        places,
        np.cumsum(np.array(model) - np.array(ideal)) * (places[1] - places[0]),
        color=COLOURS["L"],
    )
    right.set(xlabel="token of the story", ylabel="nats more than needed, so far", ylim=(0, None))
    show(
        fig,
        "Left: both curves start at 1.4 nats per token, fall within the first twenty tokens to 0.2 "
        "and rise once more near token "
        "50, where a second character comes; later the model is above the ideal reader. Right: the "
        "difference, added up, is "
        "half a nat by token 60 and near five at the end.",
    )


def stairs(steps, runs, even):
    """A panel per run: what each kind of word costs over the steps of training."""
    fig, axes = new(7.8, 2.9, columns=len(runs), sharey=True)
    colours = (COLOURS["T"], COLOURS["H"], COLOURS["D"], WRONG)
    for ax, (title, curves) in zip(axes, runs.items(), strict=True):
        for (name, values), colour in zip(curves.items(), colours, strict=True):
            ax.plot(steps, values, color=colour, label=name)
        ax.axhline(even, color="#bbbbbb", linestyle=":", linewidth=1)
        ax.set(xlabel="step", ylim=(0, 6))
        ax.set_title(title)
    axes[0].set(ylabel="nats for the word")
    axes[0].text(500, even + 0.08, "guess among 8", color="#666666", fontsize=8, ha="right")
    axes[0].legend(fontsize=8)
    show(
        fig,
        "Three panels. Split by number: name and thing, then verdict and colour fall to zero, each "
        "within a hundred steps. "
        "Split by pair: the first three do the same, and the verdict rises far above a guess. "
        "Without the document mask: "
        "name and thing fall later, and the colour not at all.",
    )


def temperatures(values, shares):
    """Share of drawn stories that the grammar could have told, over the temperature."""
    fig, ax = new(6.0, 2.9)
    spots = ((0.36, 0.1), (0.28, 0.45), (1.03, 0.95))  # free of all lines
    for (name, line), colour, spot in zip(
        shares.items(), (WRONG, COLOURS["D"], RIGHT), spots, strict=True
    ):
        ax.plot(values, line, "o-", color=colour)
        ax.text(*spot, name, color=colour, fontsize=9)
    ax.set(xlabel="temperature", ylabel="stories the grammar could tell", ylim=(-0.03, 1.08))
    show(
        fig,
        "Hardly any drawn story keeps to the grammar at any temperature. If colours need not be "
        "kept, a third to a half do; "
        "if places and foods need not be kept either, nearly all up to temperature 1, and none at "
        "1.6.",
    )


def novelty(lengths, shares):
    """Share of the runs of n words that occur in training stories, for texts of two origins."""
    fig, ax = new(6.0, 2.8)
    for line, (colour, style) in zip(shares.values(), ((WRONG, "o-"), (RIGHT, "s--")), strict=True):
        ax.plot(lengths, line, style, color=colour, markersize=4)
    names = list(shares)
    ax.text(21, shares[names[0]][2] + 0.03, names[0], color=WRONG, fontsize=9)
    ax.text(
        19,
        shares[names[1]][2] - 0.16,
        names[1].replace("of ", "of\n"),
        color=RIGHT,
        fontsize=9,
        ha="right",
    )
    ax.set(xlabel="words in a row", ylabel="also in a training story", ylim=(-0.03, 1.05))
    show(
        fig,
        "Of runs of five words nearly all occur in training stories, of twenty words a minority, "
        "of sixty hardly one; the "
        "curve of the model's stories and that of new stories of the grammar lie close together.",
    )
