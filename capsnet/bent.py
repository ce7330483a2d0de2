"""What a network makes of digits that are bent out of shape: curves, and the digits.

References:
    Sabour, Frosst, Hinton. Dynamic Routing Between Capsules. NIPS 2017, section 5: trained
        on digits that are upright, tested on those of affNIST.
        https://arxiv.org/abs/1710.09829
"""

import os

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from capsnet import pictures
from capsnet.data.affine import REACH
from capsnet.files import write_text

BINS = 8
"""Points of a curve, but for that of places, whose bins end where the training did."""

WHAT = {
    "angle": "turned by, degrees",
    "shear": "sheared by",
    "scale": "size, factor",
    "shift": f"moved by, pixels ({REACH} in training)",
}
"""The axes of `affnist.png`."""


def curves(changes, right):
    """Return which share of the digits is read, by how they were bent.

    Args:
        changes: dict of arrays `(n,)`, see `capsnet.data.Bent`.
        right: boolean array `(n,)`.

    Returns:
        A list of dicts: `change`, `value`, the middle of a bin, `images` and `right` in it.
    """
    rows = []
    for change, values in changes.items():
        if change == "shift":
            edges = REACH / 3 * np.arange(values.max() // (REACH / 3) + 2)
        else:
            edges = np.linspace(values.min(), values.max(), BINS + 1)
        bins = len(edges) - 1
        of = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
        for i in range(bins):
            among = right[of == i]
            counts = {"images": len(among), "right": int(among.sum())}
            middle = (edges[i] + edges[i + 1]) / 2
            rows.append({"change": change, "value": round(float(middle), 4), **counts})
    return rows


def show(data, right, save_dir, network="network"):
    """Write `affnist.png` and `affnist-curves.csv`, and `affnist-digits.png`.

    Args:
        data: `capsnet.data.Bent`. Without its changes there are no curves.
        right: boolean array `(n,)`, which of its images were read.
        save_dir: str. The directory.
        network: str. Its name, for the curves.
    """
    if data.changes is None:
        return
    rows = [{"network": network, **row} for row in curves(data.changes, right)]
    table = pd.DataFrame(rows).to_csv(index=False)
    write_text(os.path.join(save_dir, "affnist-curves.csv"), table)
    path = os.path.join(save_dir, "affnist.png")
    plot_curves(rows, path)
    print(f"Accuracy by angle, shear, size and place: {path}")
    near = data.changes["shift"] < REACH
    for where, of in ((f"by less than {REACH} pixels", near), ("further", ~near)):
        if of.any():
            read = f"{right[of].mean():.2%} of {np.count_nonzero(of):,} digits"
            print(f"Moved {where}: {read} were read")
    path = os.path.join(save_dir, "affnist-digits.png")
    some = slice(50)
    classes = [str(digit) for digit in data.y[some].argmax(1)]
    heading = "test digits, upright and below as they are tested"
    pictures.draw_images([data.upright[some], data.x[some]], classes, heading, path)
    print(f"Test digits before and after: {path}")


def plot_curves(rows, path):
    """Draw accuracy by angle, shear, size and place, a curve a network.

    Args:
        rows: list of dicts as `curves` gives them, with `network`; empty bins are left
            out.
        path: str. The picture to write.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    networks = list(dict.fromkeys(row["network"] for row in rows))
    panels = figure.subplots(1, len(WHAT), sharey=True)
    for axes, (change, label) in zip(panels, WHAT.items()):
        for network, marker in zip(networks, "osD^vPX*" * len(networks)):
            of = [r for r in rows if (r["network"], r["change"]) == (network, change)]
            of = [r for r in of if int(r["images"])]
            shares = [100 * int(r["right"]) / int(r["images"]) for r in of]
            values = [float(r["value"]) for r in of]
            axes.plot(values, shares, marker=marker, label=network)
        axes.set_xlabel(label)
        axes.locator_params("x", nbins=6)  # more would run into each other
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel("read, percent")
    first.legend(fontsize="small")
    figure.suptitle(
        "digits that are bent (synthetic affNIST), by networks that saw none"
    )
    pictures.save_figure(figure, path)
