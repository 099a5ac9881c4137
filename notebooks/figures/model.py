"""Figures of chapter 6."""

from matplotlib.patches import FancyBboxPatch

from figures.style import COLOURS, NEUTRAL, RIGHT, WRONG, new, show


def box(ax, x, y, width, height, text, colour):
    """A rounded box with a label."""
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=colour, alpha=0.25, edgecolor=colour
        )
    )
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(ax, start, end, text="", offset=(0.1, 0)):
    """An arrow with the shape of what flows along it."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#666666"})
    middle = ((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1])
    ax.text(*middle, text, fontsize=8, color="#666666", va="center")


def architecture():
    """The residual stream from left to right, with one block opened up."""
    fig, ax = new(7.6, 2.9)
    for start, end in ((1.35, 7.6), (8.4, 8.75)):
        ax.plot([start, end], [1, 1], color=COLOURS["D"], linewidth=3, zorder=0)
    box(ax, 0.1, 0.75, 1.2, 0.5, "embedding", COLOURS["V"])
    for x, name, colour in (
        (2.35, "attention", COLOURS["H"]),
        (5.05, "feed-forward", COLOURS["F"]),
    ):
        box(ax, x - 0.4, 1.7, 0.8, 0.4, "norm", COLOURS["D"])
        box(ax, x + 0.65, 1.7, 1.3, 0.4, name, colour)
        arrow(ax, (x, 1.03), (x, 1.68))
        arrow(ax, (x + 0.42, 1.9), (x + 0.63, 1.9))
        arrow(ax, (x + 1.3, 1.68), (x + 1.3, 1.15))
        ax.text(
            x + 1.3,
            1.0,
            "+",
            ha="center",
            va="center",
            fontsize=13,
            bbox={"boxstyle": "circle", "facecolor": "w"},
        )
    box(ax, 7.65, 0.75, 0.7, 0.5, "norm", COLOURS["D"])
    box(ax, 8.8, 0.75, 0.7, 0.5, "head", COLOURS["V"])
    style = "round,pad=0.05,rounding_size=0.1"
    ax.add_patch(
        FancyBboxPatch(
            (1.85, 0.6),
            5.3,
            1.7,
            boxstyle=style,
            fill=False,
            linestyle="--",
            edgecolor=COLOURS["L"],
        )
    )
    ax.text(7.15, 2.45, "a block, L times", ha="right", color=COLOURS["L"], fontsize=9)
    ax.text(5.0, 0.77, "the residual stream (B, T, D)", ha="center", fontsize=8, color="#8a5f00")
    for x, text in ((0.7, "ids\n(B, T)"), (9.15, "logits\n(B, T, V)")):
        ax.text(x, 0.4, text, ha="center", va="center", fontsize=8, color="#666666")
    ax.set(xlim=(0, 9.7), ylim=(0.2, 2.7))
    ax.axis("off")
    show(
        fig,
        "A horizontal line, the stream, from embedding to final norm and head. Two branches leave "
        "it through a norm, "
        "pass attention or feed-forward, and are added back; the pair is one block, repeated L "
        "times.",
    )


def gradients(plain, residual):
    """Gradient norm that arrives at each layer of a deep stack, with and without the residual
    addition.
    """
    fig, ax = new(6.4, 2.8)
    ax.semilogy(range(1, len(plain) + 1), plain, color=WRONG)
    ax.semilogy(range(1, len(residual) + 1), residual, color=RIGHT)
    ax.set(xlabel="layer (the loss is at the right)", ylabel="length of the gradient")
    ax.text(12, 0.4, "$x \\leftarrow x + f(x)$", color=RIGHT)
    ax.text(14, 1e-3, "$x \\leftarrow f(x)$", color=WRONG)
    show(
        fig,
        "Without the addition the gradient shrinks exponentially towards the first layer; with it, "
        "it stays level.",
    )


def start_losses(losses, uniform):
    """Loss at initialisation for several sizes of the initial weights."""
    fig, ax = new(6.4, 2.4)
    ax.semilogx(list(losses), list(losses.values()), "o-", color=RIGHT, markersize=4)
    ax.axhline(uniform, color=NEUTRAL, linestyle="--")
    ax.text(0.005, uniform + 0.5, f"ln V = {uniform:.2f}", color="#666666")
    ax.set(xlabel="standard deviation of the initial weights", ylabel="loss before training")
    show(fig, "Small initial weights give a loss of ln V; large ones give a loss far above it.")


def leak(differences):
    """How far each position's logits move when one token is changed."""
    fig, ax = new(6.4, 2.4)
    positions = range(len(differences))
    ax.bar(positions, differences, color=[NEUTRAL if d == 0 else RIGHT for d in differences])
    ax.set(xlabel="position", ylabel="largest change\nof a logit", xticks=positions)
    show(
        fig,
        "Changing token 5 leaves the logits of positions 0 to 4 untouched and moves all later "
        "ones.",
    )


def parameters(rows):
    """Where the parameters are, per model, as shares of the whole."""
    fig, ax = new(7.2, 2.3)
    colours = {
        "embedding": COLOURS["V"],
        "attention": COLOURS["H"],
        "feed-forward": COLOURS["F"],
        "head": "#AAAAAA",
    }
    for i, (_name, counts) in enumerate(rows.items()):
        total, left = sum(counts.values()), 0.0
        for part, colour in colours.items():
            share = counts[part] / total
            ax.barh(i, share, left=left, color=colour, label=part if i == 0 else None)
            if share > 0.05:
                ax.text(
                    left + share / 2,
                    i,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
            left += share
    ax.set_yticks(
        range(len(rows)), [f"{name}\n{sum(c.values()) / 1e9:,.2f} B" for name, c in rows.items()]
    )
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of all parameters")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, 1.3), ncols=4)
    show(
        fig,
        "Stacked bars: the feed-forward layers hold most parameters; embedding and head matter "
        "only in small models.",
    )


def removal(tried, baseline, losses):
    """Loss of the real model when one whole block is skipped, and when neighbouring blocks change
    places.
    """
    fig, ax = new(6.8, 2.8)
    for values, colour in zip(losses.values(), (COLOURS["L"], COLOURS["K"]), strict=True):
        ax.plot(tried, values, "o-", markersize=3, color=colour)
    ax.text(1.2, 9.5, "block left out", color=COLOURS["L"])
    ax.text(2.2, 5.6, "block swapped with the next", color=COLOURS["K"])
    ax.axhline(baseline, color=NEUTRAL, linestyle="--")
    ax.text(17, baseline - 0.8, "untouched", color="#666666")
    ax.set(xlabel="block", ylabel="loss per token, nats", ylim=(2.8, 13.5))
    show(
        fig,
        "Skipping or swapping blocks near the ends of the model costs most; in the middle it costs "
        "a fraction of a nat.",
    )


def post_norm(losses):
    """Loss of the real model with its norms in other places."""
    fig, ax = new(6.4, 1.9)
    colours = [RIGHT] + [WRONG] * (len(losses) - 1)
    ax.scatter(list(losses.values()), list(losses), s=50, color=colours)
    for i, value in enumerate(losses.values()):
        ax.text(value * 1.2, i, f"{value:.3g}", va="center")
    ax.invert_yaxis()
    ax.margins(y=0.2)
    ax.set(
        xlabel="loss per token, nats (logarithmic)",
        xscale="log",
        xlim=(1, max(losses.values()) * 3),
    )
    show(
        fig,
        "Loss, log scale: "
        + ", ".join(f"{name} {value:.0f}" for name, value in losses.items())
        + ".",
    )
