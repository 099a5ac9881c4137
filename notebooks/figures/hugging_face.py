"""Figures of chapter 7a."""

from figures.checkpoints import bare, plt_rectangle
from figures.style import COLOURS, NEUTRAL, WRONG, new, show


def two_orders(width):
    """One head's rows in the neighbour order and in the half-split order, with lines between equal
    rows.
    """
    fig, ax = new(6.6, 2.5)
    pairs, colours = width // 2, [COLOURS[letter] for letter in "THDFKSLW"]
    for i in range(width):
        pair, second = divmod(i, 2)
        j = pair + second * pairs
        colour = colours[pair % len(colours)]
        ax.add_patch(plt_rectangle(i, 0, colour, 0.45))
        ax.add_patch(plt_rectangle(j, 2.2, colour, 0.45))
        name = f"{'xy'[second]}{pair}"
        ax.text(i + 0.5, 0.5, name, ha="center", va="center")
        ax.text(j + 0.5, 2.7, name, ha="center", va="center")
        ax.plot([i + 0.5, j + 0.5], [1, 2.2], color=colour, linewidth=1.2)
    bare(ax, width, 3.3)
    ax.set_xlim(-3.6, width)
    ax.text(-0.3, 0.5, "Meta, GGUF:\nneighbours", ha="right", va="center", fontsize=9)
    ax.text(-0.3, 2.7, "Hugging Face:\nhalves", ha="right", va="center", fontsize=9)
    show(
        fig,
        f"The {width} rows of one head. Above, partners x and y of each pair side by side; below, "
        f"all x first, then all y. "
        "Lines join equal rows; only the first and the last stay in place.",
    )


def permutation_damage(curves, losses):
    """Largest logit difference at each position; loss of the next token averaged over the text."""
    fig, (left, right) = new(7.6, 3, columns=2, width_ratios=[2, 1])
    colours = [NEUTRAL, COLOURS["D"], WRONG]
    for (label, values), colour in zip(curves.items(), colours[1:], strict=True):
        left.plot(values, color=colour, label=label)
    left.set(
        xlabel="position in the text",
        ylabel="largest difference of a logit",
        title="the first token is always right",
    )
    left.set_ylim(-1, 48)
    left.legend(fontsize=8, loc="upper left")
    right.barh(range(len(losses)), list(losses.values()), color=colours)
    right.set_yticks(range(len(losses)), list(losses), fontsize=8)
    right.invert_yaxis()
    right.set(title="loss per token")
    for i, value in enumerate(losses.values()):
        right.text(value, i, f" {value:.2f}", va="center", fontsize=9)
    right.margins(x=0.25)
    show(
        fig,
        "Left: both wrong loaders differ by nothing at position 0 and by 4 to 36 units after it. "
        "Right: the right order "
        "has a loss of 3.9, weights left in halves 5.4, k permuted with twice its heads 8.4.",
    )
