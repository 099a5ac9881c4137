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
        "The error of a step exported with a past of nine tokens: near zero at nine, and around a "
        "tenth or more at every "
        "other length.",
    )


def operations(before, after):
    """Operations per layer that PyTorch is asked to run, one by one and compiled."""
    fig, ax = new(6.8, 1.7)
    left = 0
    for (name, count), colour in zip(before.items(), (RIGHT, NEUTRAL, WRONG), strict=True):
        ax.barh(1, count, left=left, color=colour, height=0.7)
        inside = count > 20
        ax.text(
            left + count / 2 if inside else left,
            1 if inside else 1.45,
            f"{count:.0f} {name}",
            ha="center" if inside else "left",
            va="center" if inside else "bottom",
            color="white" if inside else colour,
        )
        left += count
    (name, count), *_ = after.items()
    ax.barh(0, count, color="#009E73", height=0.7)
    ax.text(count + 1, 0, f"{count:.0f} {name}", va="center", color="#00754F")
    ax.set(
        yticks=[0, 1],
        yticklabels=["compiled", "one by one"],
        xlabel="operations per layer and token",
        ylim=(-0.5, 1.9),
    )
    ax.grid(axis="y", visible=False)
    show(
        fig,
        f"Operations per layer and token. One by one: "
        f"{', '.join(f'{n:.0f} {k}' for k, n in before.items())}. "
        f"Compiled: about {count:.0f} calls from Python.",
    )


def speed(result, names):
    """Tokens a second over the length of the past, beside what memory allows for the first engine's
    bytes.
    """
    fig, ax = new(7.2, 3.6)
    colours = (NEUTRAL, RIGHT, "#009E73", WRONG, "#CC79A7")
    shifts = (1.08, 1.02, 1.24, 1, 0.98)
    for name, colour, shift in zip(names, colours, shifts, strict=True):
        decode = result["engines"][name]["decode"]
        ax.plot([int(n) for n in decode], decode.values(), "o-", color=colour, markersize=4)
        last = list(decode.values())[-1]
        ax.text(9200, last * shift, name, color=colour, va="center", fontsize=9)
    row = result["engines"][names[0]]
    contexts = [int(n) for n in row["decode"]]
    ceiling = [result["roofline"] / (row["bytes"] + n * row["bytes_per_slot"]) for n in contexts]
    ax.plot(contexts, ceiling, ":", color="#444444")
    ax.text(9200, ceiling[-1], "memory allows, int4", color="#444444", va="center", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="tokens in the past", ylabel="tokens per second")
    ax.set_xlim(contexts[0] * 0.85, contexts[-1] * 6)
    ax.set_xticks(contexts, [f"{n:,}" for n in contexts])
    ax.set_yticks([5, 10, 20, 50, 100, 200, 400], ["5", "10", "20", "50", "100", "200", "400"])
    ax.minorticks_off()
    at = {name: result["engines"][name]["decode"] for name in names}
    first, last = str(contexts[0]), str(contexts[-1])
    lines = "; ".join(f"{name} from {d[first]:.0f} to {d[last]:.0f}" for name, d in at.items())
    show(
        fig,
        f"Tokens per second as the past grows from {first} to {last} tokens: {lines}. Memory "
        f"allows {ceiling[0]:.0f} to {ceiling[-1]:.0f}.",
    )
