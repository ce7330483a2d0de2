"""How soon learning starts: accuracy in the first steps, for several seeds.

    python benchmarks/start.py
    python benchmarks/start.py --seeds 0 1 --steps 50 --sigma 0.003

Trains the full MNIST model as `capsulenet.py` does, on the training images but 5,000,
and reads the accuracy on those. `--sigma` replaces the default initializer of the class
capsules by a truncated normal of that standard deviation. Writes a table `--output`.
"""

import argparse
import os

from step import ROOT, write_csv  # which also puts the repository on the path

HELD_OUT = 5000


def accuracies(seed, steps, sigma):
    """Train a network for some steps.

    Args:
        seed: int. Of weights, order and shifts.
        steps: list of int, rising. Where the accuracy is read.
        sigma: float, or None for the default initializer.

    Returns:
        A list of accuracies on the images held out, one for each of `steps`.
    """
    import keras

    import capsulenet
    from capsnet import data as datasets
    from capsnet.inference import predict_in_batches

    (x, y), _ = datasets.load_mnist()
    args = capsulenet.build_parser().parse_args([])
    keras.utils.set_random_seed(seed)
    model, evaluation, _ = capsulenet.CapsNet((28, 28, 1), 10, args.routings)
    if sigma is not None:
        layer = model.get_layer("digitcaps")
        initial = keras.initializers.TruncatedNormal(stddev=sigma, seed=seed)
        layer.set_weights([initial(layer.W.shape)])
    batches = datasets.TrainingBatches(
        x[:-HELD_OUT], y[:-HELD_OUT], args.batch_size, args.shift_fraction, seed=seed
    )
    capsulenet.compile_model(model, args)
    found = []
    for step in range(max(steps)):
        model.train_on_batch(*batches[step % len(batches)])
        if step + 1 in steps:
            lengths, _ = predict_in_batches(evaluation, [x[-HELD_OUT:]])
            right = lengths.argmax(1) == y[-HELD_OUT:].argmax(1)
            found.append(float(right.mean()))
            print(f"seed {seed}, {step + 1} steps: {found[-1]:.4f}", flush=True)
    return found


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one training each")
    add("--steps", nargs="+", type=int, default=[25, 50, 75, 100], help="where to read")
    add("--sigma", type=float, help="standard deviation of the initial W")
    add("--output", default=os.path.join(ROOT, "benchmarks/results/start.csv"))
    args = parser.parse_args()
    steps = sorted(args.steps)
    rows = [
        {"seed": seed}
        | {f"steps_{n}": a for n, a in zip(steps, accuracies(seed, steps, args.sigma))}
        for seed in args.seeds
    ]
    write_csv(rows, args.output)
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
