"""Figures of chapter 12a."""

from figures.style import NEUTRAL, RIGHT, WRONG, new, show


def baked(lengths, off):
    """Error of a step whose graph holds the length 9, at other lengths."""
    fig, ax = new(6.4, 2.6)
    ax.plot(lengths, [max(o, 1e-8) for o in off], "o-", color=WRONG, markersize=3, linewidth=1)
    ax.axvline(9, color=RIGHT, linewidth=1)
    ax.text(9.6, 1e-6, "the length it was exported with", color=RIGHT, va="center")
    ax.set(yscale="log", ylim=(1e-8, 10), xlabel="tokens in the past", ylabel="error of the output")
    show(
        fig,
        "The error of a step exported with a past of nine tokens: near zero at nine, and around a tenth or more at every "
        "other length.",
    )


def operations(before, after):
    """Operations per layer that PyTorch is asked to run, one by one and compiled."""
    fig, ax = new(6.4, 1.9)
    left = 0
    for (name, count), colour in zip(before.items(), (RIGHT, NEUTRAL, WRONG), strict=True):
        ax.barh(1, count, left=left, color=colour, label=name)
        left += count
    (name, count), *_ = after.items()
    ax.barh(0, count, color="#009E73", label="compiled")
    ax.set(yticks=[0, 1], yticklabels=["compiled", "one by one"], xlabel="operations per layer and token")
    ax.grid(axis="y", visible=False)
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.35))
    show(
        fig,
        f"Operations per layer and token. One by one: {', '.join(f'{n:.0f} {k}' for k, n in before.items())}. "
        f"Compiled: about {count:.0f} calls from Python.",
    )
