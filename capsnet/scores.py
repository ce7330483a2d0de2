"""How well a test went, class by class."""

import numpy as np

from capsnet.errors import printable


def confusion(true, predicted, n_class):
    """Count how often which class was taken for which.

    Args:
        true: int array `(n,)`.
        predicted: int array `(n,)`.
        n_class: int. Number of classes.

    Returns:
        An int array `(n_class, n_class)`: images of the class of the row that were taken
        for that of the column.
    """
    counts = np.zeros((n_class, n_class), int)
    np.add.at(counts, (true, predicted), 1)
    return counts


def accuracies(counts):
    """Return the share of each class's images that were taken for it.

    Their mean is the balanced accuracy (Brodersen, Ong, Stephan, Buhmann. ICPR 2010), to
    which each class that is shown counts the same, however many images it has.

    Args:
        counts: int array as `confusion` gives it.

    Returns:
        `(of_classes, balanced)`: an array `(n_class,)`, NaN for classes that no image
        shows, and a float, both in [0, 1].
    """
    shown = counts.sum(1)
    of_classes = np.where(shown > 0, np.diag(counts) / np.maximum(shown, 1), np.nan)
    return of_classes, np.nanmean(of_classes)


def say(counts, names):
    """Print balanced accuracy and accuracy of the classes, and what was never predicted.

    Args:
        counts: int array as `confusion` gives it.
        names: list of str. The classes.
    """
    of_classes, balanced = accuracies(counts)
    print(f"Balanced acc: {balanced:.4f}, the mean over the classes")
    shown = np.flatnonzero(counts.sum(1))
    heading = "Accuracy of each class"
    if len(shown) > 20:
        heading = f"Accuracy of the worst 10 of {len(shown)} classes"
        shown = shown[np.argsort(of_classes[shown], kind="stable")][:10]
    listed = ", ".join(f"{names[i]} {100 * of_classes[i]:.1f}%" for i in shown)
    print(f"{heading}: {printable(listed)}")
    never = [names[i] for i in np.flatnonzero(counts.any(1) & ~counts.any(0))]
    if never:
        these = ", ".join(never[:20]) + ", ..." * (len(never) > 20)
        print(
            f"Warning: no image was taken for {printable(these)}, though test images "
            "show it: more --epochs may help, or --balance yes of capsulenet.py"
        )
