"""The routings, each against its paper's formulas written out in float64."""

import os
import re

import keras
import numpy as np
import pytest
from helpers import (
    ROOT,
    array,
    gradient_of_a_slope,
    needs_float64,
    output_and_gradients,
    predicted,
)
from keras import ops

from capsnet import routing, rules, squashes
from capsulelayers import CapsuleLayer, Length, PrimaryCap, squash

LAYERS = {
    "bias": {"use_bias": True},
    "leaky": {"leaky": True, "use_bias": True},
    "attention": {"routing": "attention"},
    "max_min": {"routing": "max_min"},
    "none": {"routing": "none"},
    "none, exponential": {"routing": "none", "squash": "exponential"},
    "inverted": {"routing": "inverted"},
    "inverted, squashed": {"routing": "inverted", "squash": "squash"},
}


def textbook_squash(s):
    squared = (s**2).sum(-1, keepdims=True)
    return s * squared / (1 + squared) / np.sqrt(squared)


def textbook_exponential(s):
    length = np.sqrt((s**2).sum(-1, keepdims=True))
    return (1 - np.exp(-length)) * s / length


def softmax(b, leak=False):
    e = np.exp(b)
    return e / (e.sum(1, keepdims=True) + leak)


def total_inputs(c, u_hat, bias=0.0):
    return np.einsum("bji,bjio->bjo", c, u_hat) + bias


def by_the_book(name, u, W, *others):
    """What a layer of `LAYERS` gives: predictions stored, every step written out.

    Returns:
        `(v, c)`, outputs and coefficients of the last iteration.
    """
    u_hat = np.einsum("bid,jiod->bjio", u, W)
    B, J, I, O = u_hat.shape
    equal = np.full((B, J, I), 1 / J)
    if name in ("bias", "leaky"):
        b = np.zeros((B, J, I))
        for _ in range(3):
            c = softmax(b, leak=name == "leaky")
            v = textbook_squash(total_inputs(c, u_hat, others[0]))
            b = b + np.einsum("bjio,bjo->bji", u_hat, v)
    elif name == "max_min":
        b = None
        for _ in range(3):
            if b is None:
                c, b = np.ones((B, J, I)), 0
            else:
                c = (b - b.min(1, keepdims=True)) / np.ptp(b, axis=1, keepdims=True)
            v = textbook_squash(total_inputs(c, u_hat))
            b = b + np.einsum("bjio,bjo->bji", u_hat, v)
    elif name == "attention":  # how far each prediction agrees with all the others
        a = np.einsum("bjio,bjko->bji", u_hat, u_hat) / np.sqrt(O)
        c = softmax(a) + others[0]
        v = textbook_exponential(total_inputs(c, u_hat))
    elif name.startswith("none"):
        c = equal
        squash = textbook_exponential if "exponential" in name else textbook_squash
        v = squash(total_inputs(c, u_hat))
    else:
        gamma, beta = others
        c = equal
        for _ in range(2):
            s = total_inputs(c, u_hat)
            centred = s - s.mean(-1, keepdims=True)
            normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            normal = normal * gamma + beta
            last, c = c, softmax(np.einsum("bjio,bjo->bji", u_hat, normal) / np.sqrt(O))
        c = last
        v = textbook_squash(s) if "squashed" in name else normal
    return v, c


def layer_and_values(name, J=3, I=9, O=5, D=4, **how):
    """A layer, and the values of its inputs and of its weights."""
    layer = CapsuleLayer(J, O, **LAYERS[name], **how)
    layer.build((None, I, D))
    values = [array(*w.shape, scale=0.5) for w in layer.trainable_variables]
    layer.set_weights(values)
    return layer, [array(2, I, D), *values]


# Two blocks of five input capsules, of which there are nine.
@pytest.fixture(params=[2**26, 120], ids=["whole", "blocks"])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", request.param)


def weigher(*shape):
    """A smooth loss of outputs, in NumPy and on the backend."""
    direction = array(*shape)

    def loss(v):
        return ops.sum(ops.multiply(ops.square(v), direction) + 2 * v)

    def exact(v):
        return (v**2 * direction + 2 * v).sum()

    return loss, exact


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_formulas(name, block_bytes):
    layer, values = layer_and_values(name)
    loss, exact = weigher(2, 3, 5)
    v, gradients = output_and_gradients(layer, values[0], loss)
    values = [x.astype("float64") for x in values]
    np.testing.assert_allclose(v, by_the_book(name, *values)[0], atol=1e-5)
    assert len(gradients) == len(values)
    for index, gradient in enumerate(gradients):
        step = np.zeros_like(values[index])
        step[...] = array(*step.shape)
        ends = [
            exact(by_the_book(name, *moved)[0])
            for h in (1e-5, -1e-5)
            for moved in [
                [*values[:index], values[index] + h * step, *values[index + 1 :]]
            ]
        ]
        expected = (ends[0] - ends[1]) / 2e-5
        assert (gradient * step).sum() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_those_of_the_formulas(name):
    layer, values = layer_and_values(name, D=2)
    loss, exact = weigher(2, 3, 5)
    z = array(*values[0].shape)
    gradients = gradient_of_a_slope(layer, values[0], loss, z)
    values = [x.astype("float64") for x in values]
    steps = [array(*x.shape) for x in values]
    h, expected = 1e-4, 0.0
    for sign, other in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        moved = [x + h * other * step for x, step in zip(values, steps)]
        moved[0] = moved[0] + h * sign * z
        expected += sign * other * exact(by_the_book(name, *moved)[0]) / (4 * h * h)
    found = sum((g * step).sum() for g, step in zip(gradients, steps) if g is not None)
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-2)


@needs_float64
@pytest.mark.parametrize("name", LAYERS)
def test_all_digits_of_float64_are_right(name, monkeypatch):
    monkeypatch.setattr(squashes, "EPSILON", 1e-30)
    layer, values = layer_and_values(name, dtype="float64")
    values = [x.astype("float64") for x in values]
    v = ops.convert_to_numpy(layer(values[0]))
    np.testing.assert_allclose(v, by_the_book(name, *values)[0], rtol=1e-11)


@needs_float64
def test_close_logits_are_told_apart_in_float64():
    b = 1e4 + 1e-4 * array(3, 1, 2).astype("float64")
    c = ops.convert_to_numpy(rules.max_min(ops.convert_to_tensor(b, "float64"))[0])
    expected = (b - b.min(0)) / np.ptp(b, axis=0)
    np.testing.assert_allclose(c, expected, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_what_each_iteration_gave_can_be_looked_at(name, block_bytes):
    layer, values = layer_and_values(name)
    steps = layer.route(values[0])
    assert len(steps) == layer.routings
    v, c = by_the_book(name, *(x.astype("float64") for x in values))
    last = [ops.convert_to_numpy(x) for x in steps[-1]]
    np.testing.assert_allclose(last[0], c, atol=1e-5)
    np.testing.assert_allclose(last[1], v, atol=1e-5)
    for step in steps:
        assert step.coefficients.shape == (2, 3, 9) and step.outputs.shape == (2, 3, 5)
    if name == "leaky":
        sums = [ops.convert_to_numpy(s.coefficients).sum(1) for s in steps]
        np.testing.assert_allclose(sums[0], 3 / 4, atol=1e-6)
        assert (sums[-1] < 1).all()


def test_a_layer_that_was_never_called_can_be_looked_into():
    layer = CapsuleLayer(10, 16)
    steps = layer.route(array(2, 30, 8))
    assert [step.coefficients.shape for step in steps] == [(2, 10, 30)] * 3
    with pytest.raises(ValueError, match=r"\(2, 31, 8\)"):
        layer.route(array(2, 31, 8))


@pytest.mark.parametrize("name", LAYERS)
def test_shared_transformations_are_those_of_a_layer_whose_weights_repeat(name):
    shared = CapsuleLayer(3, 5, shared=True, **LAYERS[name])
    shared.build((None, 2, 3, 4, 6))  # 2 x 3 positions, 4 channels
    of_each = CapsuleLayer(3, 5, **LAYERS[name])
    of_each.build((None, 24, 6))
    weights = {w.name: array(*w.shape, scale=0.5) for w in shared.weights}
    shared.set_weights(list(weights.values()))
    repeated = ("W", "coupling_bias")
    of_each.set_weights(
        [np.repeat(x[:, None], 6, 1).reshape(w.shape) if n in repeated else x
         for (n, x), w in zip(weights.items(), of_each.weights)]
    )  # fmt: skip
    u = array(2, 2, 3, 4, 6)
    expected = predicted(of_each, u.reshape(2, 24, 6))
    np.testing.assert_allclose(predicted(shared, u), expected, atol=1e-5)


def test_attention_is_that_of_efficient_capsnet():
    with np.load(f"{ROOT}/tests/efficient_capsnet_layers.npz") as file:
        recorded = dict(file)
    layer = CapsuleLayer(3, 6, routing="attention")
    layer.build((None, 7, 5))
    layer.set_weights(
        [recorded["attention_W"].swapaxes(2, 3), recorded["attention_b"][..., 0]]
    )
    v, gradients = output_and_gradients(
        layer, recorded["attention_u"], lambda v: ops.sum(ops.square(v))
    )
    np.testing.assert_allclose(v, recorded["attention_v"], atol=1e-5)
    expected = [recorded[f"attention_grad_{name}"] for name in "uWb"]
    expected = [expected[0], expected[1].swapaxes(2, 3), expected[2][..., 0]]
    for found, known in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-5)


def test_max_min_of_predictions_that_all_agree_equally_is_one():
    layer = CapsuleLayer(3, 4, routing="max_min")
    layer.build((None, 6, 2))
    layer.set_weights([np.tile(array(1, 6, 4, 2), (3, 1, 1, 1))])
    v, gradients = output_and_gradients(layer, array(2, 6, 2), ops.sum)
    steps = layer.route(np.zeros((1, 6, 2), "float32"))
    assert all((ops.convert_to_numpy(s.coefficients) == 1).all() for s in steps)
    assert np.isfinite(v).all() and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    "how, said",
    [
        ({"routing": "em"}, "dynamic, attention, max_min, none, inverted"),
        ({"routing": ["dynamic"]}, "there are dynamic"),
        ({"routing": "attention", "routings": "3"}, "routings must be an integer"),
        ({"routing": "attention", "leaky": True}, "no leaky"),
        ({"routing": "inverted", "use_bias": True}, "no use_bias"),
        ({"routing": "attention", "routings": 3}, "1 iteration"),
        ({"squash": "relu"}, "squash, exponential"),
        ({"squash": "layer_norm"}, "squash, exponential"),
        ({"routings": 0}, "routings must be"),
    ],
)
def test_what_a_routing_has_not_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        CapsuleLayer(3, 4, **how)


def test_a_rule_of_one_s_own_is_not_replaced_by_another(monkeypatch):
    mine = rules.Rule(normalize=rules.max_min, use_bias=True)
    monkeypatch.setitem(rules.RULES, "mine", mine)
    assert (
        CapsuleLayer(3, 4, routing="mine", use_bias=True).rule.normalize
        == rules.max_min
    )
    with pytest.raises(ValueError, match="no leaky; dynamic has"):
        CapsuleLayer(3, 4, routing="mine", leaky=True)
    leak = mine._replace(normalize=rules.softmax)
    monkeypatch.setitem(rules.RULES, "mine", mine._replace(leaky=leak))
    leaking = CapsuleLayer(3, 4, routing="mine", leaky=True).rule
    assert leaking.normalize == rules.softmax


def test_the_rule_that_the_docs_add_is_one_with_the_gradient_of_its_formula(
    monkeypatch,
):
    with open(os.path.join(ROOT, "docs", "design.md")) as file:
        section = file.read().split("### A routing")[1].split("###")[0]
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    known = {"ops": ops, "Rule": rules.Rule, "RULES": rules.RULES}
    exec(code, known)  # noqa: S102 (the page is ours)
    layer = CapsuleLayer(3, 5, routing="sigmoid")
    u = array(2, 9, 4)
    layer.build(u.shape)
    W, step = array(3, 9, 5, 4, scale=0.5), array(3, 9, 5, 4)

    def outputs(W):  # of the logits' sums of agreements, see `by_the_book`
        u_hat = np.einsum("bid,jiod->bjio", u, W)
        b = np.zeros(u_hat.shape[:3])
        for _ in range(3):
            v = textbook_squash(total_inputs(1 / (1 + np.exp(-b)), u_hat))
            b = b + np.einsum("bjio,bjo->bji", u_hat, v)
        return v

    layer.set_weights([W])
    v, (_, gradient) = output_and_gradients(layer, u, ops.sum)
    u, W = u.astype("float64"), W.astype("float64")
    np.testing.assert_allclose(v, outputs(W), atol=1e-5)
    ends = [outputs(W + h * step).sum() for h in (1e-5, -1e-5)]
    assert (gradient * step).sum() == pytest.approx(
        (ends[0] - ends[1]) / 2e-5, rel=1e-3
    )


@keras.saving.register_keras_serializable(package="tests")
def halved(vectors):
    return vectors / 2


def test_layers_of_any_routing_come_back_from_their_configuration():
    for how in (*LAYERS.values(), {"squash": halved}, {"squash": squash}):
        layer = CapsuleLayer(3, 4, **how)
        again = CapsuleLayer.from_config(layer.get_config())
        assert again.get_config() == layer.get_config()
        assert again.rule == layer.rule and again.squash == layer.squash


@pytest.mark.parametrize("name", ["leaky", "attention", "max_min", "none", "inverted"])
def test_three_layers_of_any_routing_learn(name):
    how = dict(LAYERS[name])
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=240)
    patterns = rng.random((4, 12, 12, 1)) > 0.6
    images = (patterns[labels] * rng.random((240, 1, 1, 1))).astype("float32")
    inputs = x = keras.Input((12, 12, 1))
    x = PrimaryCap(x, 4, 4, 5, 2, "valid")
    for size in [(8, 6), (8, 6)]:
        x = CapsuleLayer(*size, **how)(x)
    x = CapsuleLayer(4, 8, **how, squash="squash")(x)
    model = keras.Model(inputs, Length()(x))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["accuracy"])
    given = (images, np.eye(4)[labels])
    history = model.fit(*given, batch_size=24, epochs=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"][-1] > 0.9


@pytest.mark.parametrize("name", LAYERS)
def test_masked_capsules_send_nothing_by_any_routing_nor_where_they_share(name):
    layer = CapsuleLayer(3, 5, shared=True, **LAYERS[name])
    u, mask = array(2, 4, 3, 6), np.arange(24).reshape(2, 4, 3) % 5 > 0
    sent = np.where(mask[..., None], u, 0)
    expected = ops.convert_to_numpy(layer(sent))
    found = layer(np.where(mask[..., None], u, np.nan), mask=mask)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-6)
    routed = ops.convert_to_numpy(layer.route(u, mask)[-1].outputs)
    np.testing.assert_allclose(routed, expected, atol=1e-5)
