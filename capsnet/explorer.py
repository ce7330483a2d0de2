"""A network that is asked about one picture at a time: what stands behind the page.

Plain functions of pictures and numbers; `capsnet.page` shows what they return.
"""

import threading
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from capsnet import dimensions, options, routes
from capsnet.data import check_channels, fit_and_tell
from capsnet.dimensions import MANIPULATIONS
from capsnet.strokes import STROKES, WEAKEST, measure_strokes


class Answer(NamedTuple):
    """What a network says of a picture.

    Attributes:
        image: float32 array `(height, width, channels)`, in [0, 1]: what it sees.
        done: str. What was done to the picture, see `capsnet.data.fit_and_tell`.
        chosen: int. The likeliest class.
        told: tuple of int. The classes that the picture is told to show, see
            `capsnet.verdict.Prediction`.
        lengths: float array `(n_class,)`.
        reconstruction: array of the shape of `image`, or None without a decoder.
        verdict: str, `one`, `none`, `two` or `unsure`; None where the file of weights
            has no thresholds.
    """

    image: np.ndarray
    done: str
    chosen: int
    told: tuple
    lengths: np.ndarray
    reconstruction: np.ndarray | None
    verdict: str | None


class Iteration(NamedTuple):
    """What an iteration of routing gave for one image.

    Attributes:
        lengths: float array `(n_class,)`.
        by_place: array `(rows, columns)`: the coefficients to the winner, see
            `capsnet.routes.at_places`.
        picture: uint8 array `(height, width, 3)`: those, laid over the image.
    """

    lengths: np.ndarray
    by_place: np.ndarray
    picture: np.ndarray


class Explorer:
    """A network, to be asked by several threads, which take turns.

    Args:
        models: the trio of the network. The convolutions of these take another form
            from then on, see `_for_one_image`.
        about: dict of `class_names`, `like_mnist` and `thresholds`, as
            `capsulenet.load_model` returns it.
        predict: function of that name of `capsulenet`.
        test: pair `(x_test, y_test)` of arrays, images that tell what the dimensions
            change. Defaults to None: then the picture itself tells.

    Raises:
        ValueError: if the network's images have channels that no picture has.
    """

    def __init__(self, models, about, predict, test=None):
        _, self.model, _ = models
        self.names = about["class_names"]
        self.like_mnist = about["like_mnist"]
        self.thresholds = about["thresholds"]
        self.shape = tuple(self.model.inputs[0].shape[1:])
        check_channels(self.shape)
        self.has_decoder = len(self.model.outputs) > 1
        self.test = test
        self._predict = predict
        self._layer = self.model.get_layer("digitcaps")
        self.dim = self._layer.output.shape[-1]
        self._capsules = keras.Model(self.model.inputs[0], self._layer.output)
        self._inputs = keras.Model(self.model.inputs[0], self._layer.input)
        self._lock = threading.RLock()
        self._spread, self._effects = None, {}
        _for_one_image(self.model)

    def warm_up(self):
        """Ask everything once, which compiles: later answers take their usual time."""
        image = np.zeros(self.shape, "float32")
        self.answer(image, "")
        self.routing(image)
        if self.has_decoder:
            capsules = self.capsules(image)
            self.turned(capsules, 0, np.zeros(self.dim))
            self.pairs(capsules, 0)

    def learn_names(self):
        """Measure what the dimensions of all classes change, which takes seconds."""
        if self.has_decoder and self.test is not None:
            for chosen in range(len(self.names)):
                self.named(None, chosen)

    def read(self, picture):
        """Answer a picture, fitted as `--predict` does it.

        Args:
            picture: Pillow image of mode `L` or `RGB`.

        Returns:
            An `Answer`.
        """
        return self.answer(*fit_and_tell(picture, self.shape, self.like_mnist))

    def answer(self, image, done):
        """Answer an image that is fitted already; arguments and result as `Answer`."""
        with self._lock:
            result = self._predict(self.model, image[None], self.thresholds)
        (chosen,), (lengths,), drawn = result
        verdict = None if result.verdicts is None else str(result.verdicts[0])
        drawn = None if drawn is None else drawn[0]
        told = tuple(map(int, result.told(0)))
        return Answer(image, done, int(chosen), told, lengths, drawn, verdict)

    def capsules(self, image):
        """Return the class capsules of an image, an array `(n_class, dim)`."""
        with self._lock:
            return np.float32(self._capsules.predict_on_batch(image[None])[0])

    def turned(self, capsules, chosen, amounts):
        """Draw what one capsule stands for, after its dimensions were changed.

        Args:
            capsules: array `(n_class, dim)`.
            chosen: int. The class whose capsule is drawn.
            amounts: sequence of `dim` numbers, which are added. They are held within
                those of `MANIPULATIONS`, and what is no number counts as 0.

        Returns:
            An array `(height, width, channels)`, in [0, 1].
        """
        amounts = np.nan_to_num(np.asarray(amounts, "float64"))
        amounts = np.clip(amounts, MANIPULATIONS[0], MANIPULATIONS[-1])
        return self._decoded(np.array([capsules[chosen] + amounts]), chosen)[0]

    def pairs(self, capsules, chosen):
        """Draw each dimension of a capsule lowered, and raised, as far as it goes.

        Returns:
            An array `(dim, 2, height, width, channels)`, in [0, 1].
        """
        ends = np.eye(self.dim)[:, None] * MANIPULATIONS[[0, -1], None]
        drawn = self._decoded((capsules[chosen] + ends).reshape(-1, self.dim), chosen)
        return drawn.reshape(self.dim, 2, *self.shape)

    def _decoded(self, vectors, chosen):
        """Draw capsules `(n, dim)` of a class, the others masked out."""
        masked = np.zeros((len(vectors), len(self.names), self.dim), "float32")
        masked[:, chosen] = vectors
        with self._lock:
            decoder = self.model.get_layer("decoder")
            drawn = decoder.predict_on_batch(masked.reshape(len(vectors), -1))
        return np.float32(drawn)

    def named(self, capsules, chosen):
        """Say what each dimension of a capsule changes most.

        With test images that is a mean over `IMAGES` of the class, in standard
        deviations among them all, as in `dimensions.png`. Without, it is read from
        `pairs`, and how much is not told.

        Returns:
            A list of `dim` strings, such as `slant +1.8`.
        """
        if self.test is None:
            drawn = self.pairs(capsules, chosen)
            spread = np.std(measure_strokes(drawn), axis=(0, 1))
            effects = dimensions.effects_on_strokes(drawn[None], spread)
            return [_direction(row) for row in effects]
        if chosen not in self._effects:  # two at once would find the same
            self._effects[chosen] = self._measured(chosen)
        return [_amount(row) for row in self._effects[chosen]]

    def _measured(self, chosen):
        """The effects of a class among the test images, see `effects_on_strokes`."""
        x, y = self.test
        if self._spread is None:
            how = [options.DEFAULTS[name] for name in ("shift_fraction", "shifts")]
            self._spread = dimensions.spread_of(x, y, *how)
        some = dimensions.some_of(chosen, y, 0, dimensions.IMAGES)
        pairs = [self.pairs(self.capsules(image), chosen) for image in x[some]]
        return dimensions.effects_on_strokes(np.array(pairs), self._spread)

    def routing(self, image):
        """Tell how the capsules of an image were routed to the winner.

        Returns:
            A list of `Iteration`; the coefficients have one scale in all pictures.
        """
        with self._lock:
            capsules = self._inputs(image[None], training=False)
            steps = self._layer.route(capsules)
        capsules = ops.convert_to_numpy(capsules)
        capsules = capsules.reshape(-1, capsules.shape[-1])
        steps = [[np.float32(ops.convert_to_numpy(x))[0] for x in s] for s in steps]
        lengths = [np.linalg.norm(outputs, axis=-1) for _, outputs in steps]
        winner = int(lengths[-1].argmax())
        places, extent = routes.places_of(self.model)
        found = [routes.at_places(capsules, c[winner], places) for c, _ in steps]
        scale = routes.span(found)
        drawn = [routes.laid_over(image, by, scale, extent) for by in found]
        return list(map(Iteration, lengths, found, drawn))


def _for_one_image(model):
    """Have convolutions computed directly.

    The spectral form transforms its kernels once a batch, which costs more than all the
    rest where the batch is one image. The results are equal but for rounding.
    """
    for layer in model.layers:
        if getattr(layer, "form", None) in ("spectral", "patches"):
            layer.form = "direct"


def _amount(effects):
    """Name the strongest effect, and tell how strong it is."""
    strongest = np.argmax(np.abs(effects))
    little = "little, " if abs(effects[strongest]) < WEAKEST else ""
    return f"{little}{STROKES[strongest]} {effects[strongest]:+.1f}"


def _direction(effects):
    """Name the strongest effect, and tell whether it is more or less of it."""
    strongest = np.argmax(np.abs(effects))
    return f"{STROKES[strongest]} {'more' if effects[strongest] > 0 else 'less'}"
