import itertools

import keras
import numpy as np
import pytest
from helpers import images

from capsnet import data as datasets
from capsnet.data import TrainingBatches, ValidationBatches


def one_hot(n, n_class=3):
    return np.eye(n_class, dtype="float32")[np.arange(n) % n_class]


def numbered(n):
    """Images that each show their own number, so that a batch tells what is in it."""
    return np.ones((n, 2, 2, 1), "float32") * np.arange(n)[:, None, None, None]


def numbers(batches, index):
    (x, _), _ = batches[index]
    return keras.ops.convert_to_numpy(x)[:, 0, 0, 0].astype(int).tolist()


def middles(images):
    """Row and column of the centre of each image's ink, of 29 x 29 pixels, from the middle."""
    mass = images.sum((1, 2, 3))
    return [images.sum((k, 3)) @ (np.arange(29) - 14) / mass for k in (2, 1)]


def test_rotations_and_zooms_have_every_size_up_to_the_limits():
    rows, columns = np.indices((29, 29)) - 14
    blot = np.exp(-(rows**2 + (columns - 8) ** 2) / 4)  # 8 pixels right of the middle
    x = np.tile(blot.astype("float32")[..., None], (4000, 1, 1, 1))
    batches = TrainingBatches(x, one_hot(4000), 4000, rotation=30, zoom=0.2)
    (moved, _), (_, target) = batches[0]
    np.testing.assert_array_equal(moved, target)
    rows, columns = middles(moved)
    angles = np.degrees(np.arctan2(-rows, columns))
    assert -30.1 < angles.min() < -29.5 and 29.5 < angles.max() < 30.1
    lengths = np.hypot(rows, columns) / 8
    assert 0.79 < lengths.min() < 0.81 and 1.19 < lengths.max() < 1.21
    for values, limits in ((angles, (-30, 30)), (lengths, (0.8, 1.2))):
        assert np.histogram(values, 5, limits)[0].min() > 4000 / 5 * 0.8
    assert abs(np.corrcoef(angles, lengths)[0, 1]) < 0.1


def test_shears_have_every_size_up_to_the_limit_and_keep_each_row_in_its_place():
    rows, columns = np.indices((29, 29)) - 14
    blot = np.exp(-((rows + 8) ** 2 + columns**2) / 4)  # 8 pixels above the middle
    x = np.tile(blot.astype("float32")[..., None], (4000, 1, 1, 1))
    (moved, _), (_, target) = TrainingBatches(x, one_hot(4000), 4000, shear=0.4)[0]
    np.testing.assert_array_equal(moved, target)
    rows, columns = middles(moved)
    np.testing.assert_allclose(rows, -8, atol=0.01)
    shears = columns / -8
    assert -0.401 < shears.min() < -0.39 and 0.39 < shears.max() < 0.401
    assert np.histogram(shears, 5, (-0.4, 0.4))[0].min() > 4000 / 5 * 0.8


def test_displacements_are_smooth_and_as_large_as_is_said_at_each_pixel():
    height, width = 28, 42
    ramps = np.moveaxis(np.indices((height, width), "float32"), 0, 2)
    x = np.tile(ramps, (600, 1, 1, 1))  # each pixel shows its own place
    (bent, _), (_, target) = TrainingBatches(x, one_hot(600), 600, elastic=0.02)[0]
    np.testing.assert_array_equal(bent, target)
    inside = (bent - x)[:, 4:-4, 4:-4]  # of what comes from outside no place is known
    for axis, side in enumerate((height, width)):
        moved = inside[..., axis]
        np.testing.assert_allclose(moved.std(0), 0.02 * side, rtol=0.15)
        assert abs(moved.mean()) < 0.01 * side * 0.1
        down = np.diff(moved, axis=1).std(), np.diff(moved, axis=2).std()
        # Numbers blurred by a Gaussian of width s differ by 1 / (s sqrt 2) a pixel.
        expected = [0.02 * side / (s / 7 * np.sqrt(2)) for s in (height, width)]
        np.testing.assert_allclose(down, expected, rtol=0.15)
        assert abs(np.corrcoef(moved[:, 0, 0], moved[:, -1, -1])[0, 1]) < 0.15
    assert abs(np.corrcoef(inside[:, 9, 9].T)[0, 1]) < 0.15


def test_a_square_of_each_image_is_blanked_anywhere_within_it():
    height, width = 12, 20
    x = np.ones((4000, height, width, 1), "float32")
    (erased, _), (_, target) = TrainingBatches(x, one_hot(4000), 4000, erase=0.25)[0]
    np.testing.assert_array_equal(erased, target)
    blank = erased[..., 0] == 0
    rows, columns = blank.any(2), blank.any(1)
    assert (blank == rows[:, :, None] & columns[:, None]).all()
    for lines, side in ((rows, height), (columns, width)):
        first, size = lines.argmax(1), height // 4
        assert (lines.sum(1) == size).all()
        assert (side - lines[:, ::-1].argmax(1) - first == size).all()  # in one piece
        counts = np.bincount(first)
        assert len(counts) == side - size + 1  # up to either edge
        assert abs(counts / 4000 * len(counts) - 1).max() < 0.25
    assert abs(np.corrcoef(rows.argmax(1), columns.argmax(1))[0, 1]) < 0.05


# A shear does not change from which row a pixel comes.
@pytest.mark.parametrize(
    "change, same", [("elastic", slice(2)), ("shear", slice(1)), ("erase", slice(2))]
)
def test_later_changes_are_drawn_anew_and_leave_the_other_draws(change, same):
    x, y = images(10), one_hot(10)
    deformed = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        plain, hardly, bent = (
            TrainingBatches(x, y, 10, 0.3, rotation=9, tint=0.1, seed=seed, **changes)
            for changes in ({}, {change: 1e-9}, {change: 0.3})
        )
        for batches in (plain, hardly, bent):
            batches.draw(epoch)
            np.testing.assert_array_equal(plain.order, batches.order)
            np.testing.assert_array_equal(
                plain.augmentation.moves[:, same], batches.augmentation.moves[:, same]
            )
        apart = abs(plain[0][0][0] - hardly[0][0][0]) > 1e-6
        assert apart.mean() <= (
            1 / apart[0].size if change == "erase" else 0
        )  # a pixel
        deformed.append(bent[0][0][0])
    np.testing.assert_array_equal(deformed[0], deformed[3])
    for other in deformed[1:3]:
        assert abs(deformed[0] - other).max() > 0.1


def test_interpolated_shifts_have_every_length_up_to_the_fraction():
    x = np.zeros((4000, 28, 28, 1), "float32")
    x[:, 14, 14] = 1
    batches = TrainingBatches(x, one_hot(4000), 4000, 0.1, shifts="interpolated")
    (moved, _), _ = batches[0]
    assert moved.dtype == "float32"
    np.testing.assert_allclose(moved.sum((1, 2, 3)), 1, rtol=1e-5)
    for axis in (1, 2):
        places = np.arange(28) - 14
        centres = moved.sum((3 - axis, 3)) @ places
        assert -2.8 <= centres.min() < -2.7 and 2.7 < centres.max() <= 2.8
        parts = np.histogram(centres % 1, 5, (0, 1))[0]
        assert parts.min() > 4000 / 5 * 0.8


def test_shifts_reach_two_pixels_on_mnist_and_no_further():
    x = np.zeros((4000, 28, 28, 1), "float32")
    x[:, 14, 14] = 1
    (moved, _), _ = TrainingBatches(x, one_hot(4000), 4000, shift_fraction=0.1)[0]
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 4000
    for positions in (rows, columns):
        values, counts = np.unique(positions, return_counts=True)
        assert values.tolist() == [12, 13, 14, 15, 16]
        assert counts.min() > 4000 / 5 * 0.8


def test_the_reach_of_whole_shifts_is_rounded_down_but_for_rounding_errors():
    x = np.zeros((2, 100, 50, 1), "float32")
    assert 0.29 * 100 < 29
    assert TrainingBatches(x, one_hot(2), 2, 0.29).augmentation.reach == [29, 14]
    assert TrainingBatches(x, one_hot(2), 2, 0.2999).augmentation.reach == [29, 14]
    parts = TrainingBatches(x, one_hot(2), 2, 0.25, shifts="interpolated")
    assert parts.augmentation.reach == [25, 12.5]


def test_batches_are_prepared_by_one_thread_or_by_as_many_as_are_asked_for():
    x, y = numbered(4), one_hot(4)
    assert TrainingBatches(x, y, 2).workers == 1
    assert TrainingBatches(x, y, 2, workers=3).workers == 3


@pytest.mark.parametrize("n, batch_size", [(10, 4), (12, 4), (3, 8)])
def test_an_epoch_shows_every_image_in_batches_of_one_size(n, batch_size):
    batches = TrainingBatches(numbered(n), one_hot(n), batch_size)
    seen = [numbers(batches, index) for index in range(len(batches))]
    assert len(batches) == -(-n // batch_size)
    assert {len(batch) for batch in seen} == {min(batch_size, n)}
    assert sorted(np.ravel(seen)[:n]) == list(range(n))


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        batches = TrainingBatches(numbered(50), one_hot(50), 50, seed=seed)
        batches.draw(epoch)
        return numbers(batches, 0)

    default = TrainingBatches(numbered(50), one_hot(50), 50)
    assert numbers(default, 0) == order(0, 0) != order(0, 1)
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_the_target_is_the_shifted_image_and_labels_stay_with_their_images():
    x, y = numbered(20), np.eye(20, dtype="float32")
    batches = TrainingBatches(x, y, 8, shift_fraction=0.5)
    (x_in, y_in), (y_out, x_out) = batches[1]
    np.testing.assert_array_equal(x_in, x_out)
    np.testing.assert_array_equal(y_in, y_out)
    assert (x_in == 0).any()
    for image, label in zip(x_in, y_in):
        assert set(np.unique(image)) <= {0, label.argmax()}


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"shifts": "interpolated"}, {"rotation": 20, "zoom": 0.3}),
        *(
            {"shear": 0.4},
            {"elastic": 0.1, "erase": 0.3},
            {"fill_mode": "nearest"},
            {"fill_mode": "nearest", "rotation": 20},
            {"flip": True},
            {"brightness": 0.5, "tint": 0.2},
        ),
    ],
)
def test_batches_on_the_device_are_the_same(changes):
    x, y = images(10), one_hot(10)
    options = {"batch_size": 4, "shift_fraction": 0.4, "seed": 3, **changes}
    for index in range(3):
        host = TrainingBatches(x, y, **options)[index]
        on_device = TrainingBatches(x, y, on_device=True, **options)
        assert all(map(keras.ops.is_tensor, (on_device.x, on_device.y)))
        device = on_device[index]
        assert all(map(keras.ops.is_tensor, keras.tree.flatten(device)))
        assert not any(map(keras.ops.is_tensor, keras.tree.flatten(host)))
        for a, b in zip(keras.tree.flatten(host), keras.tree.flatten(device)):
            b = keras.ops.convert_to_numpy(b)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if changes else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"shift_fraction": 0.2},
        {"rotation": 20},
        {"zoom": 0.3},
        {"shear": 0.4},
        {"elastic": 0.1},
        {"erase": 0.4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_change_is_made_alone_too(change):
    x, y = images(10, height=6, width=4), one_hot(10)  # 0.2 moves rows alone
    still = TrainingBatches(x, y, 10)
    np.testing.assert_array_equal(still[0][0][0], x[still.order])
    moved = TrainingBatches(x, y, 10, **change)
    assert (moved.order == still.order).all()
    assert abs(moved[0][0][0] - x[moved.order]).max() > 0.1
    halves = TrainingBatches(x, y, 5, **change)
    both = [halves[index][0][0] for index in (0, 1)]  # each has draws of its own
    np.testing.assert_array_equal(np.concatenate(both), moved[0][0][0])


@pytest.mark.parametrize("n, batch_size", [(10, 4), (12, 4), (3, 8)])
def test_validation_weights_make_averages_exact(n, batch_size):
    batches = ValidationBatches(numbered(n), one_hot(n), batch_size)
    means, sizes = [], []
    assert batches.batch_size == min(batch_size, n)
    assert len(batches) == -(-n // batch_size)
    for index in range(len(batches)):
        (x, _), _, (weights, _) = batches[index]
        means.append((x[:, 0, 0, 0] * weights).mean())
        sizes.append(len(x))
    assert len(set(sizes)) == 1
    assert np.mean(means) == pytest.approx(np.arange(n).mean())


@pytest.mark.parametrize("kind", ["training", "shifted", "pairs", "validation"])
def test_no_two_arrays_of_a_batch_share_memory(kind):
    x, y = images(10), one_hot(10)
    if kind == "validation":
        batch = ValidationBatches(x, y, 4)[2]
    else:
        options = {"shifted": {"shift_fraction": 0.2}, "pairs": {"overlap": 2}}
        batch = TrainingBatches(x, y, 4, **options.get(kind, {}))[0]
    arrays = [array for part in batch for array in part]
    for array, other in itertools.combinations([x, y, *arrays], 2):
        assert not np.shares_memory(array, other)


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_shares_of_the_hosts_make_the_batch(hosts):
    x = np.arange(25 * 4, dtype="float32").reshape(25, 2, 2, 1)
    y = np.eye(2, dtype="float32")[np.arange(25) % 2]
    whole = datasets.TrainingBatches(x, y, 6, 0.5, seed=1, devices=hosts)
    parts = [
        datasets.TrainingBatches(x, y, 6, 0.5, 1, devices=hosts, share=(i, hosts))
        for i in range(hosts)
    ]
    assert len(whole) == len(parts[0]) == 5
    for index in range(5):
        (images, labels), _ = whole[index]
        shares = [part[index][0] for part in parts]
        np.testing.assert_array_equal(np.concatenate([s[0] for s in shares]), images)
        np.testing.assert_array_equal(np.concatenate([s[1] for s in shares]), labels)
    whole = datasets.ValidationBatches(x, y, 6, devices=hosts)
    weights = [
        datasets.ValidationBatches(x, y, 6, devices=hosts, share=(i, hosts))[4][2][0]
        for i in range(hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(weights), whole[4][2][0])


def test_a_batch_of_few_images_is_filled_up_to_the_devices():
    x, y = np.zeros((7, 2, 2, 1)), np.eye(7)
    batches = datasets.TrainingBatches(x, y, 100, devices=4)
    assert len(batches) == 1 and len(batches[0][0][0]) == 8
    assert batches[0][0][1].sum(0).min() == 1  # no image is lost


def test_every_other_image_is_mirrored_and_nothing_else_changes():
    x = images(400, 5, 4, 3)
    (flipped, _), (_, target) = TrainingBatches(x, one_hot(400), 400, flip=True)[0]
    (plain, _), _ = TrainingBatches(x, one_hot(400), 400)[0]
    np.testing.assert_array_equal(flipped, target)
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == plain).all((1, 2, 3)) != mirrored).all()
    assert 140 < mirrored.sum() < 260


def test_brightness_and_tint_reach_their_limits_and_stay_within():
    x = np.full((2000, 2, 2, 3), 0.5, "float32")
    (lit, _), _ = TrainingBatches(x, one_hot(2000), 2000, brightness=0.4)[0]
    assert 0.3 <= lit.min() < 0.31 and 0.69 < lit.max() <= 0.7
    assert np.ptp(lit, axis=(1, 2, 3)).max() == 0  # one factor an image
    (tinted, _), _ = TrainingBatches(x, one_hot(2000), 2000, tint=0.2)[0]
    assert 0.3 <= tinted.min() < 0.31 and 0.69 < tinted.max() <= 0.7
    assert np.ptp(tinted, axis=3).max() > 0.3  # each channel for itself
    assert np.ptp(tinted, axis=(1, 2)).max() == 0
    (clipped, _), _ = TrainingBatches(x * 2, one_hot(2000), 2000, tint=0.2)[0]
    assert clipped.max() == 1 and clipped.min() >= 0.79


def test_balanced_batches_show_each_class_as_often_and_all_of_its_images():
    y = np.eye(4, dtype="float32")[[0] * 80 + [1] * 6 + [3] * 4]  # none of class 2
    batches = TrainingBatches(numbered(90), y, 90, balance=True)
    drawn = numbers(batches, 0)
    counts = np.bincount(y[drawn].argmax(1), minlength=4)
    assert counts.sum() == 90 and counts[2] == 0 and 28 <= counts.max() <= 30
    assert set(range(80, 90)) <= set(drawn)
    assert batches.commonest == pytest.approx(1 / 3)
    assert TrainingBatches(numbered(90), y, 90).commonest == pytest.approx(80 / 90)


def test_balanced_batches_show_images_of_no_class_too():
    y = np.zeros((40, 3), "float32")  # 24 of class 0, 4 of 0 and 1, 2 of 1, 10 of none
    y[:28, 0] = y[24:30, 1] = 1
    batches = TrainingBatches(numbered(40), y, 40, balance=True)
    drawn = np.bincount(numbers(batches, 0), minlength=40)
    assert sum(drawn) == 40 and set(range(30, 40)) <= set(np.flatnonzero(drawn))
    assert 12 <= drawn[30:].sum() <= 14  # a third
    shares = [24 / 28 / 3, 4 / 28 / 3 + 4 / 6 / 3, 2 / 6 / 3, 1 / 3]
    assert batches.commonest == pytest.approx(max(shares))
    assert TrainingBatches(numbered(40), y, 40).commonest == pytest.approx(24 / 40)
