"""Figures of chapter 20."""

from figures.style import NEUTRAL, RIGHT, WRONG, new, show


def total_and_used(models: dict[str, tuple[int, int]]):
    """Name -> (weights held, weights that one token uses): two dots on a line for each."""
    figure, ax = new(7.0, 2.9)
    names = list(models)[::-1]
    for y, name in enumerate(names):
        held, used = (n / 1e9 for n in models[name])
        ax.plot([used, held], [y, y], color=NEUTRAL, lw=1.5, zorder=1)
        ax.scatter([held], [y], color=NEUTRAL, s=45, zorder=2)
        ax.scatter([used], [y], color=RIGHT, s=45, zorder=3)
        if held > 1.2 * used:
            text = f"{held:.0f} held, {used:.0f} used"
        else:
            text = f"{used:.0f}, all used"
        ax.text(held * 1.12, y, text, va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.set(xscale="log", xlim=(5, 1500), ylim=(-0.6, len(names) - 0.4))
    ax.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1,000"])
    ax.set_xlabel("billions of weights: held (grey), used by one token (blue)")
    ax.grid(axis="y", visible=False)
    show(
        figure,
        "Dense models use all their weights for each token; Scout and Maverick use 17 billion of "
        "108 and of 401.",
    )


def masks(whole, chunked):
    """Two masks (T, S) side by side: what a query sees."""
    figure, axes = new(6.2, 3.1, columns=2)
    for ax, mask, title in (
        (axes[0], whole, "every fourth layer: the whole context"),
        (axes[1], chunked, "the other three: their own chunk"),
    ):
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.6)
        ax.set_title(title)
        ax.set(xlabel="key", ylabel="query", xticks=[0, 4, 8], yticks=[0, 4, 8])
        ax.grid(visible=False)
        for edge in (3.5, 7.5):
            ax.axhline(edge, color=WRONG, lw=1)
            ax.axvline(edge, color=WRONG, lw=1)
    show(
        figure,
        "Left: a full lower triangle of 12 tokens. Right: three small triangles of 4 tokens each.",
    )
