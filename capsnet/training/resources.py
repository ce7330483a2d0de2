"""What a training or a prediction takes: memory, devices, compilation."""

import math
import weakref

import keras

from capsnet import machine
from capsnet.architecture import capsule_layer, has_capsules, primary_positions
from capsnet.numerics import on_cpu
from capsnet.routing import ROUTING_BLOCK_BYTES
from capsnet.training import devices


def step_memory(model, batch_size):
    """Estimate the memory that a training step needs beyond an idle process.

    Eight arrays of the size of the weights (gradients, Adam's averages, transformed
    kernels), eight of each layer's output, six of what goes into and comes out of a
    spectral convolution, and what the routing works with. Coarse: for four networks of
    28 to 64 pixels on TensorFlow it was 0.8 to 1.7 times what was measured.

    Args:
        model: the training model.
        batch_size: int.

    Returns:
        The number of bytes, an int.
    """
    numbers = 0
    # Of a subclass the layers within have no outputs of known shapes.
    stems = [x for x in model.layers if getattr(x, "inputs", None)]
    for layer in [*model.layers, *(inner for stem in stems for inner in stem.layers)]:
        output = sum(math.prod(x.shape[1:]) for x in keras.tree.flatten(layer.output))
        numbers += 8 * output
        if getattr(layer, "form", None) == "spectral":
            numbers += 6 * (math.prod(layer.input.shape[1:]) + output)
    coupling, digitcaps = 0, capsule_layer(model)
    if digitcaps is not None and digitcaps.routings > 1:
        coupled = digitcaps.num_capsule * math.prod(digitcaps.input.shape[1:-1])
        coupling = min(coupled * batch_size, ROUTING_BLOCK_BYTES // 4)
    return 4 * (8 * model.count_params() + batch_size * numbers + 48 * coupling)


def check_memory(shape, n_class, shared=False):
    """Raise a `ValueError` where the weights of `CapsNet` alone would fill the memory.

    Args:
        shape: tuple `(height, width, channels)` of the images.
        n_class: int.
        shared: bool. Whether positions share transformations. Defaults to False.
    """
    there = machine.machine_memory()
    capsules = 32 * (1 if shared else primary_positions(*shape[:2]))
    needed = 4 * (capsules * 8 * n_class * 16 + 1024 * math.prod(shape))
    if on_cpu() and there and needed > there:
        raise ValueError(
            f"images of {shape[0]} x {shape[1]} pixels need {needed / 1e9:.0f} GB for "
            f"the weights alone, and this machine has {there / 1e9:.0f}: a smaller "
            "--image_size helps"
        )


def check_step(model, batch_size):
    """Raise a `ValueError` where a training step would not fit into the memory.

    It names the largest batch that fits, or the ways out where none does.

    Args:
        model: the training model.
        batch_size: int.
    """
    there = machine.machine_memory()
    if not there or not on_cpu() or not has_capsules(model):
        return
    needed = step_memory(model, batch_size)
    if needed <= there:
        return
    alone = step_memory(model, 0)
    largest = int((there - alone) * batch_size / (needed - alone))
    while largest > 0 and step_memory(model, largest) > there:
        largest -= 1
    fits = f"--batch_size {largest} fits" if largest > 0 else "not even one image fits"
    side = min(model.inputs[0].shape[1:3])
    smaller = max(17, int(side * math.sqrt(there / needed)))
    raise ValueError(
        f"--batch_size {batch_size}: a step needs about {needed / 1e9:.1f} GB, and this "
        f"machine has {there / 1e9:.1f}; {fits}, or --image_size {smaller}, or the "
        "network for pictures, --model photo"
    )


def describe(model, batch_size):
    """Describe what is about to be trained.

    Args:
        model: the training model.
        batch_size: int.

    Returns:
        A line that names the backend and the forms of the convolutions, and whether XLA
        compiles; of capsules then their number, that of parameters and the memory of a
        step.
    """
    forms = [
        f"{layer.name} {layer.form}"
        for layer in model.layers
        if getattr(layer, "form", None)
    ]
    if model.jit_compile:
        forms.append("compiled by XLA: the first step takes longer")
    lines = [f"Backend {keras.backend.backend()}: {', '.join(forms)}".rstrip(": ")]
    digitcaps = capsule_layer(model)
    if digitcaps is not None:
        needed = step_memory(model, batch_size)
        capsules = math.prod(digitcaps.input.shape[1:-1])
        lines.append(
            f"{capsules} primary capsules, {model.count_params():,} parameters, about "
            f"{needed / 1e9:.1f} GB a step of {batch_size} images"
        )
    return "\n".join(lines)


def jit_compile(model):
    """Return what Keras is to compile by XLA.

    Specific to the backend: what XLA compiles can't be mirrored by TensorFlow, and the
    gradients of Keras' own convolutions take it long on a CPU.

    Args:
        model: the model that is compiled.
    """
    if keras.backend.backend() != "tensorflow":
        return "auto"
    convolved = any(
        isinstance(layer, _CONVOLUTIONS) and not hasattr(layer, "form")
        for layer in model._flatten_layers()
    )
    return False if devices.replicas() > 1 or (on_cpu() and convolved) else "auto"


_CONVOLUTIONS = (
    *(keras.layers.Conv2D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv2D, keras.layers.Conv2DTranspose),
)


def steps_per_execution(steps):
    """Return the number of steps between two looks at the numbers, which make an accelerator wait.

    Specific to the backend: PyTorch's trainer takes one step at a time.
    """
    if on_cpu() or keras.backend.backend() == "torch":
        return 1
    return max(1, steps // 20)


def make_variables(model):
    """Make what a compiled model keeps besides its weights: moments, running means.

    Specific to the backend: TensorFlow traces a step once more where it makes them on the
    way, a second and a half. The others, and TensorFlow's strategies, make them before.
    """
    if keras.backend.backend() != "tensorflow" or devices.replicas() > 1:
        return
    model.optimizer.build(model.trainable_variables)
    zeros = [keras.ops.zeros((1, *output.shape[1:])) for output in model.outputs]
    # As `fit` brings them: what is wanted is a tuple.
    found, wanted = (zeros, tuple(zeros)) if len(zeros) > 1 else zeros * 2
    model.compute_loss(y=wanted, y_pred=found)
    model.compute_metrics(None, wanted, found)


def images_on_device():
    """Whether the images are kept on the accelerator."""
    one = devices.replicas() == 1
    return one and not on_cpu() and keras.backend.backend() != "tensorflow"


def batch_threads(threads):
    """Return how many threads may prepare batches.

    Specific to the backend: with JAX and PyTorch, Keras' threads keep batches of one
    epoch for the next one, so that most of an epoch's order would be that of another.
    """
    return threads if keras.backend.backend() == "tensorflow" else 1


def feed(batches):
    """Return the batches of a training as `fit` takes them without waiting.

    Specific to the backend: what Keras makes of a `PyDataset` for TensorFlow tunes its own
    buffers, and to free it, once an epoch, takes what is left of the tuning's period, up to
    a minute.

    Args:
        batches: `keras.utils.PyDataset`, of one shape, prepared by its `workers` threads.
            To be kept while they are taken: TensorFlow never lets go of a function.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    specs = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batches[0]
    )
    dtypes = [spec.dtype for spec in keras.tree.flatten(specs)]
    source = weakref.ref(batches)

    def batch(index):
        arrays = tf.numpy_function(
            lambda index: keras.tree.flatten(source()[index]),
            [index],
            dtypes,
            stateful=False,  # or they come one by one where all is deterministic
        )
        for array, spec in zip(arrays, keras.tree.flatten(specs)):
            array.set_shape(spec.shape)
        return keras.tree.pack_sequence_as(specs, arrays)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = batches.workers  # not one a core
    indices = tf.data.Dataset.range(len(batches))
    prepared = indices.map(batch, batches.workers, deterministic=True).prefetch(2)
    return prepared.with_options(options)
