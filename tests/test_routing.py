import keras
import numpy as np
import pytest
from helpers import (
    array,
    capsule_layer,
    gradient_of_a_slope,
    layer_gradients,
    output_and_gradients,
    predicted,
    routed_by_the_book,
)
from keras import ops

from capsnet import numerics, routing, rules
from capsulelayers import CapsuleLayer

TENSORFLOW = keras.backend.backend() == "tensorflow"


def sum_of_squares(x):
    return ops.sum(ops.square(x))


@pytest.mark.parametrize("routings", [1, 2, 3, 5])
@pytest.mark.parametrize("block_bytes", [2**26, 1000], ids=["whole", "blocks"])
def test_routing_gives_the_recorded_outputs_and_gradients(
    recorded, routings, block_bytes, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    layer = capsule_layer(recorded["caps_W"], routings=routings)
    output, gradients = output_and_gradients(layer, recorded["caps_in"], sum_of_squares)
    np.testing.assert_allclose(output, recorded[f"caps_out_r{routings}"], atol=1e-5)
    for gradient, name in zip(gradients, "uW"):
        expected = recorded[f"caps_grad_{name}_r{routings}"]
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("routing_gradient", [True, False])
def test_routing_in_blocks_trains_as_without(monkeypatch, routing_gradient):
    u, target = array(6, 10, 4), array(6, 3, 5)
    W = array(3, 10, 5, 4, scale=0.3)
    trained = []
    for block_bytes in (2**26, 300):  # one block, and four with two capsules to spare
        monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
        layer = CapsuleLayer(3, 5, routing_gradient=routing_gradient)
        model = keras.Sequential([keras.Input((10, 4)), layer])
        layer.set_weights([W])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit(u, target, epochs=3, batch_size=6, verbose=0)
        trained.append(layer.get_weights()[0])
    assert abs(trained[0] - W).max() > 1e-3
    np.testing.assert_allclose(*trained, atol=1e-6)


def test_routing_ignores_the_order_of_input_capsules():
    u, W = array(2, 9, 4), array(3, 9, 5, 4)
    order = np.random.permutation(9)
    result = predicted(capsule_layer(W), u)
    shuffled = predicted(capsule_layer(W[:, order]), u[:, order])
    np.testing.assert_allclose(shuffled, result, atol=1e-5)


def test_routing_treats_each_example_alone():
    layer = capsule_layer(array(3, 9, 5, 4))
    u = array(6, 9, 4)
    together = predicted(layer, u)
    for n in (1, 4):
        alone = predicted(layer, u[:n])
        assert alone.shape == (n, 3, 5)
        np.testing.assert_allclose(alone, together[:n], atol=1e-6)


def test_agreement_wins():
    """Of two outputs, the one whose predictions agree gets longer by routing."""
    u = np.ones((1, 8, 1), "float32")
    W = np.ones((2, 8, 1, 1), "float32") * 0.5
    W[1, 4:] = -0.4  # half of the second capsule's predictions point the other way
    lengths = [
        np.abs(predicted(capsule_layer(W, routings=r), u)).ravel() for r in (1, 3)
    ]
    assert lengths[1][0] > lengths[0][0]
    assert lengths[0][0] > lengths[0][1]


@pytest.mark.parametrize("routing_gradient", [True, False])
@pytest.mark.parametrize("block_bytes", [2**26, 120], ids=["whole", "blocks"])
def test_second_derivatives_are_those_of_float64(
    routing_gradient, block_bytes, monkeypatch
):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    u, W = array(2, 9, 2), array(3, 9, 5, 2)
    z, step_u, step_W = array(*u.shape), array(*u.shape), array(*W.shape)
    layer = capsule_layer(W, routing_gradient=routing_gradient)
    du, dW = gradient_of_a_slope(layer, u, sum_of_squares, z)
    _, c = routed_by_the_book(u, W, 3)
    exact_u, exact_W = u.astype("float64"), W.astype("float64")

    def value(u, W):
        return (
            routed_by_the_book(u, W, 3, None if routing_gradient else c)[0] ** 2
        ).sum()

    h = 1e-4
    corners = [
        sign
        * other
        * value(exact_u + h * (sign * z + other * step_u), exact_W + h * other * step_W)
        for sign in (1, -1)
        for other in (1, -1)
    ]
    expected = sum(corners) / (4 * h * h)
    assert abs(expected) > 0.1
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(
        expected, rel=1e-3
    )


def test_without_routing_gradient_the_coefficients_are_constants():
    u, W = array(2, 9, 4), array(3, 9, 5, 4, scale=0.5)
    exact_u, exact_W = u.astype("float64"), W.astype("float64")
    layer = capsule_layer(W, routing_gradient=False)
    _, c = routed_by_the_book(u, W, 3)
    du, dW = layer_gradients(layer, u, sum_of_squares)

    def value(u, W):
        return (routed_by_the_book(u, W, 3, c)[0] ** 2).sum()

    step_u, step_W, h = array(*u.shape), array(*W.shape), 1e-5
    ahead, behind = (
        value(exact_u + step * step_u, exact_W + step * step_W) for step in (h, -h)
    )
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(
        (ahead - behind) / (2 * h), rel=1e-3
    )
    through_all = layer_gradients(capsule_layer(W), u, sum_of_squares)
    assert abs(through_all[1] - dW).max() > 1e-3


@pytest.mark.parametrize("block_bytes", [2**26, 4000], ids=["whole", "blocks"])
def test_capsules_of_many_dimensions_are_routed_by_the_book(block_bytes, monkeypatch):
    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", block_bytes)
    u, W = array(2, 7, 40), array(3, 7, 5, 40, scale=0.2)
    direction = array(2, 3, 5)

    def loss(v):
        return ops.sum(ops.multiply(v, direction))

    v, gradients = output_and_gradients(capsule_layer(W), u, loss)
    np.testing.assert_allclose(v, routed_by_the_book(u, W, 3)[0], atol=1e-5)
    exact_u, exact_W, h = u.astype("float64"), W.astype("float64"), 1e-5
    step_u, step_W = array(*u.shape), array(*W.shape)
    ahead, behind = (
        (
            routed_by_the_book(exact_u + s * step_u, exact_W + s * step_W, 3)[0]
            * direction
        )
        for s in (h, -h)
    )
    slope = (ahead - behind).sum() / (2 * h)
    du, dW = gradients
    assert (du * step_u).sum() + (dW * step_W).sum() == pytest.approx(slope, rel=1e-3)


@pytest.mark.skipif(not TENSORFLOW, reason="reads TensorFlow's graph")
def test_the_graph_does_not_grow_with_the_dimension_of_the_input_capsules():
    import tensorflow as tf

    numbers = []
    for D in (8, 64, 256):
        layer = capsule_layer(array(3, 7, 5, D))
        differentiate = tf.function(lambda u, layer=layer: tf.gradients(layer(u), u))
        graph = differentiate.get_concrete_function(tf.TensorSpec((2, 7, D))).graph
        numbers.append(len(graph.get_operations()))
    assert numbers[2] == numbers[1] < numbers[0]


@pytest.mark.skipif(not TENSORFLOW, reason="reads TensorFlow's graph")
def test_no_array_is_as_large_as_the_prediction_vectors(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(routing, "ROUTING_BLOCK_BYTES", 2**26)  # one block

    B, J, I, O, D = 200, 20, 300, 16, 8
    layer = capsule_layer(array(J, I, O, D))

    @tf.function
    def gradient(u):
        with tf.GradientTape() as tape:
            tape.watch(u)
            value = sum_of_squares(layer(u))
        return tape.gradient(value, [u, layer.W.value])

    graph = gradient.get_concrete_function(tf.TensorSpec((B, I, D))).graph
    largest = max(
        np.prod(output.shape.as_list())
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    )
    assert largest == B * J * I


def test_sums_of_the_softmax_are_no_products_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(numerics, "on_cpu", lambda: False)
    x = array(6, 4, 5)
    expected = np.exp(x) / np.exp(x).sum(0)
    monkeypatch.setattr(numerics.ops, "ones", None)  # for the product with ones
    result, _ = rules.softmax(ops.convert_to_tensor(x))
    result = ops.convert_to_numpy(result)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_layer_is_mapped_over_examples():
    layer, u = CapsuleLayer(3, 4), array(4, 9, 5)
    expected = predicted(layer, u)
    one = lambda u: layer(u[None])[0]
    mapped = ops.convert_to_numpy(ops.vectorized_map(one, ops.convert_to_tensor(u)))
    np.testing.assert_allclose(mapped, expected, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_pytorch_s_transforms_give_the_gradient_of_each_example():
    import torch

    layer, u = CapsuleLayer(3, 4), torch.tensor(array(4, 9, 5))
    length = lambda u: layer(u[None]).square().sum()
    u.requires_grad_()
    expected = torch.autograd.grad(layer(u).square().sum(), u)[0]
    found = torch.func.vmap(torch.func.grad(length))(u.detach())
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("how", [{"routing": name} for name in rules.RULES])
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_pytorch_s_batched_jacobians_are_those_of_a_loop(how):
    from torch import tensor
    from torch.autograd.functional import jacobian

    layer, u = CapsuleLayer(3, 4, **how), tensor(array(2, 9, 5))
    layer(u)
    found, expected = (jacobian(layer, u, vectorize=fast) for fast in (True, False))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_a_bias_of_constant_coefficients_is_learned_under_pytorch_s_transforms():
    import torch

    shapes = (2, 4, 9), (2, 3, 5, 9), (3, 4, 5)  # D, B, I; D, J, O, I; J, B, O
    u, W, V = (torch.tensor(array(*shape)) for shape in shapes)

    def total(beta):
        return routing._block_input(rules.softmax, False, u, W, V, beta).sum()

    beta = torch.tensor(array(3, 9)).requires_grad_()
    expected = torch.autograd.grad(total(beta), beta)[0]
    assert expected.abs().max() > 0.1
    found = torch.func.grad(total)(beta.detach())
    np.testing.assert_allclose(found, expected, atol=1e-5)
