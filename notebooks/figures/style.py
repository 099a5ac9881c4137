"""One look for every figure: a colour per dimension, and `show`, which gives each figure its alt
text.
"""

import io

import matplotlib.pyplot as plt
from IPython.display import display
from PIL import Image


# One letter and one colour per dimension in the whole series (letters: LlamaConfig's docstring).
# The colours can be told apart with any kind of colour vision (Okabe and Ito 2008).
COLOURS = {
    "B": "#999999",  # batch
    "T": "#0072B2",  # tokens, queries
    "S": "#56B4E9",  # positions that are looked at, keys
    "D": "#E69F00",  # width of the stream
    "H": "#009E73",  # query heads
    "K": "#CC79A7",  # kv heads
    "W": "#B8A800",  # width of a head
    "F": "#D55E00",  # width of the feed-forward layer
    "V": "#444444",  # vocabulary
    "L": "#7A5195",  # layers
}
RIGHT, WRONG, NEUTRAL = "#0072B2", "#D55E00", "#999999"  # a correct version, a broken one, context

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.color": "#eeeeee",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "image.cmap": "cividis",
    }
)


def new(width=7.0, height=3.0, rows=1, columns=1, **settings):
    """(figure, axes) in the series' look; sizes in inches."""
    return plt.subplots(rows, columns, figsize=(width, height), **settings)


def show(figure, alt: str):
    """Display a figure as PNG with alt text, which is also what nbval compares; then close it."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    # a third of the bytes
    few = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(small, format="PNG", optimize=True)
    data = {"image/png": small.getvalue(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def numbers(ax, matrix, fmt="{:.1f}", title="", colour="#0072B2", size=9):
    """Draw a small matrix as a grid of numbers, darker where the magnitude is larger."""
    matrix = [[float(x) for x in row] for row in matrix]
    largest = max(abs(x) for row in matrix for x in row) or 1.0
    for i, row in enumerate(matrix):
        for j, x in enumerate(row):
            shade = 0.6 * abs(x) / largest
            ax.add_patch(
                plt.Rectangle((j, i), 1, 1, facecolor=colour, alpha=shade, edgecolor="none")
            )
            ax.add_patch(plt.Rectangle((j, i), 1, 1, fill=False, edgecolor="#cccccc"))
            ax.text(j + 0.5, i + 0.5, fmt.format(x), ha="center", va="center", fontsize=size)
    ax.set(
        xlim=(0, len(matrix[0])),
        ylim=(len(matrix), 0),
        aspect="equal",
        xticks=[],
        yticks=[],
        title=title,
    )
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
