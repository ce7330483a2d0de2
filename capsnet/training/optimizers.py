"""The optimizer of a training, and its learning rate."""

import keras

OPTIMIZERS = {"adam": keras.optimizers.Adam, "lamb": keras.optimizers.Lamb}
"""What `--optimizer` may be."""


def optimizer(args, steps):
    """Return the optimizer that the options ask for.

    Args:
        args: namespace with all options. The exponential schedule is a callback's, see
            `capsnet.training.fit.callbacks_of`.
        steps: int. Steps an epoch.
    """
    learning_rate = args.lr
    if args.schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(
            args.lr, decay_steps=args.epochs * steps
        )
    return OPTIMIZERS[args.optimizer](
        learning_rate, use_ema=args.ema > 0, ema_momentum=args.ema
    )
