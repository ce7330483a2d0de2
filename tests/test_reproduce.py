import concurrent.futures
import os
import re

import keras
import numpy as np
import pytest

import reproduce
from capsnet import weights
from capsnet.architecture import architecture
from capsnet.data import Data, Pairs


def test_a_run_starts_from_the_weights_that_it_is_given(tmp_path, squares, monkeypatch):
    flags = ["--dataset", squares, "--runs", str(tmp_path)]
    data = reproduce.load(reproduce.parse(flags))
    other_seed = reproduce.run_options(reproduce.parse(flags), "v1", 1)
    first, _ = reproduce.build("v1", other_seed, data)
    path = str(tmp_path / "first.h5")
    weights.save_weights(first, path)
    args = reproduce.parse([*flags, "-w", path])
    started = []

    def train(model, data, options, signals):
        started.extend(model.get_weights())
        os.makedirs(options.save_dir)
        (tmp_path / options.save_dir / "log.csv").write_text("epoch\n")

    monkeypatch.setattr(reproduce.capsulenet, "train", train)
    reproduce.run(args, "v1", 0, data)
    expected = first.get_weights()
    assert len(started) == len(expected)
    assert all(map(np.array_equal, started, expected))
    assert reproduce.key(args, "v1", 0)["options"] == f"--weights {path}"


def test_the_variants_are_those_of_the_paper_and_take_more_flags():
    args = reproduce.parse(
        ["--lr", "0.002", "--recipe", "cosine", "--no-routing-gradient"]
    )
    found = {}
    for variant in args.variants:
        options = reproduce.run_options(args, variant, 2)
        found[variant] = (options.routings, options.lam_recon)
        assert (options.lr, options.schedule) == (0.002, "cosine")
        assert options.seed == 2 and options.resume and options.epochs == 50
        assert os.path.basename(options.save_dir) == (
            f"{variant}-cosine-lr=0.002-routing_gradient=False-50-seed2"
        )
    assert found == {
        "baseline": (1, 0.0),
        "v1": (1, 0.0),
        "v2": (1, 0.392),
        "v3": (3, 0.0),
        "v4": (3, 0.392),
    }
    flags = reproduce.key(args, "v4", 2)["options"]
    assert flags == "--lr 0.002 --no_routing_gradient --schedule cosine"


@pytest.mark.parametrize(
    "variant, told",
    [
        ("v4", {"routing": "dynamic", "routings": 3, "leaky": False}),
        ("leaky", {"routing": "dynamic", "routings": 3, "leaky": True}),
        ("max_min", {"routing": "max_min", "routings": 3}),
        ("inverted", {"routing": "inverted", "routings": 2}),
        ("efficient", {"model": "efficient", "routing": "attention", "routings": 1}),
        ("photo", {"model": "photo", "routing": "dynamic", "routings": 1}),
        ("shared", {"model": "shared", "routing": "none", "routings": 1}),
        ("attention", {"routing": "attention", "routings": 1}),
    ],
)
def test_the_other_variants_are_the_networks_that_they_name(variant, told):
    args = reproduce.parse(["--variants", variant])
    data = Data((np.zeros((1, 20, 20, 1)), np.eye(3)[:1]), None, list("abc"))
    model, _ = reproduce.build(variant, reproduce.run_options(args, variant, 0), data)
    assert told.items() <= {"model": "capsnet", **architecture(model)}.items()
    row = reproduce.key(args, variant, 0) | {"error": "0.30"}
    table = reproduce.table([row])
    titled = [row.title for row in reproduce.VARIANTS.values() if row.title in table]
    of_paper = [reproduce.VARIANTS[name].title for name in reproduce.PAPER]
    assert set(titled) >= {*of_paper, reproduce.VARIANTS[variant].title}
    assert "0.30, 1 trial" in table


@pytest.mark.parametrize("recipe", reproduce.RECIPES)
def test_the_options_of_a_row_are_flags_that_repeat_its_run(recipe):
    args = reproduce.parse(["--recipe", recipe, "--no_routing_gradient"])
    again = reproduce.parse(reproduce.key(args, "v4", 0)["options"].split())
    assert args.given and again.given == args.given


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--seed 3", "--seed: reproduce.py has no use for it"),
        ("--lam-recon=0.1", "--lam_recon: reproduce.py has no use for it"),
        ("-t", "--testing: reproduce.py has no use for it"),
        ("--trials 0", "--trials 0: must be at least 1"),
        ("--images -1", "--images -1: must be at least 0"),
        ("--bogus 1", "unrecognized arguments: --bogus 1"),
        ("--dataset nowhere", "nowhere: no such file or folder"),
        ("--table --csv other.csv", "other.csv: no column variant"),
        ("--table --csv binary.csv", "--csv binary.csv: not a results table"),
        ("--table --csv none.csv", "none.csv: no finished run in it yet"),
        ("--csv file/table.csv", "file: File exists"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\x80\xff\x00")
    monkeypatch.setattr(reproduce, "run", None)
    with pytest.raises(SystemExit) as end:
        reproduce.main(flags.split())
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_rows_that_are_added_together_are_all_kept(tmp_path):
    path = str(tmp_path / "table.csv")

    def add(seed):
        run = dict.fromkeys(reproduce.COLUMNS, "a, b") | {"seed": str(seed % 15)}
        reproduce.add_rows(path, [run])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    found = reproduce.finished_runs(path)
    assert sorted(int(row["seed"]) for row in found) == list(range(15))
    assert found[0]["options"] == "a, b"


def test_held_out_images_are_training_images_that_are_not_trained_on():
    args = reproduce.parse(["--held_out"])
    assert os.path.basename(args.csv) == "mnist_held_out.csv"
    assert reproduce.parse(["--dataset", "data/signs/"]).dataset == "data/signs"
    other = reproduce.parse(["--dataset", "data/signs.npz"])
    assert os.path.basename(other.csv) == "signs.csv"
    (x_train, _), (x_held, y_held), _ = reproduce.load(args)
    assert len(x_held) == len(y_held) == 5000 and len(x_train) == 55000
    fewer = reproduce.load(reproduce.parse(["--held_out", "--images", "400"]))
    assert [len(part[0]) for part in fewer[:2]] == [300, 100]
    trained_on = {image.tobytes() for image in x_train}
    (x_all, _), _, _ = reproduce.load(reproduce.parse([]))
    of_training = {image.tobytes() for image in x_all}
    held = {image.tobytes() for image in x_held}
    assert held <= of_training and not held & trained_on


@pytest.mark.parametrize("dataset", ["mnist", "multimnist", "affnist"])
def test_held_out_images_are_tested_and_others_decide_when_to_stop(dataset):
    flags = ["--dataset", dataset, "--held_out", "--images", "400", "--until", "0.9"]
    data = reproduce.load(reproduce.parse(flags))
    parts = data.train, data.held_out, data.test
    assert [len(part[0]) for part in parts] == [225, 75, 100]
    if dataset == "mnist":
        all_of_them = {image.tobytes() for x, _ in parts for image in x}
        assert len(all_of_them) == 400
    if dataset == "affnist":  # each is moved, as far as the margin of 6 pixels allows
        margins = [x[:, :6].any() for x, _ in parts]
        assert margins == [False, True, True]
    if dataset == "multimnist":
        assert isinstance(data.test, Pairs) and isinstance(data.held_out, Pairs)


@pytest.fixture
def stub_training(monkeypatch):
    """Have a run train nothing; gives the options of each."""
    seen = []

    def train(model, data, options, signals):
        seen.append((options, data))
        os.makedirs(options.save_dir, exist_ok=True)
        for name in ("log.csv", "trained_model.h5"):
            with open(os.path.join(options.save_dir, name), "w") as file:
                file.write("seconds\n")

    monkeypatch.setattr(reproduce.capsulenet, "train", train)
    return seen


def test_all_pictures_of_pairs_are_tested(tmp_path, squares, stub_training):
    with np.load(squares) as file:
        arrays = dict(file)
    for part in ("y_train", "y_test"):  # two classes make no pairs to tell apart
        arrays[part] = np.arange(len(arrays[part])) % 3
    path = str(tmp_path / "three.npz")
    np.savez(path, **arrays)
    flags = ["--dataset", path, "--pairs", "--test_size", "50"]
    args = reproduce.parse([*flags, "--runs", str(tmp_path)])
    row = reproduce.run(args, "v1", 0, reproduce.load(args))
    assert row["images"] == 50
    assert row["error"] == f"{2 * row['wrong']:.3f}"


@pytest.mark.parametrize("held_out", [False, True])
def test_a_run_is_validated_on_no_test_images_but_on_those_held_out(
    tmp_path, squares, stub_training, held_out
):
    flags = ["--dataset", squares, "--runs", str(tmp_path)]
    args = reproduce.parse(flags + ["--held_out"] * held_out)
    data = reproduce.load(args)
    reproduce.run(args, "v1", 0, data)
    ((_, (_, (x, _))),) = stub_training
    expected = data.test[0] if held_out else data.train[0]
    np.testing.assert_array_equal(x, expected)


def test_a_flag_that_is_given_is_kept_where_another_value_would_suit(
    tmp_path, stub_training
):
    flags = ["--dataset", "affnist", "--images", "40", "--test_size", "2"]
    flags += ["--runs", str(tmp_path)]
    keys = []
    for more in ([], ["--shift_fraction", "0.1"]):
        args = reproduce.parse([*flags, *more])
        reproduce.run(args, "efficient", 0, reproduce.load(args))
        keys.append(reproduce.key(args, "efficient", 0))
    assert [options.shift_fraction for options, _ in stub_training] == [0.15, 0.1]
    assert keys[0] != keys[1]


def test_the_baseline_of_several_classes_tells_each_by_itself():
    y = np.array([[1, 1, 0], [0, 1, 0]], "float32")
    data = Data((np.zeros((2, 20, 20, 1)), y), None, list("abc"))
    for labels, last in ((y, "sigmoid"), (np.eye(3)[:2], "softmax")):
        data = data.with_train((data.train[0], labels))
        options = reproduce.run_options(reproduce.parse([]), "baseline", 0)
        model, _ = reproduce.build("baseline", options, data)
        assert model.layers[-1].activation.__name__ == last


def test_table_shows_mean_deviation_and_number_of_trials():
    def row(variant, error, epochs=50, options="", dataset="mnist", split="test"):
        return {
            "variant": variant,
            "recipe": "default",
            "epochs": str(epochs),
            "error": str(error),
            "options": options,
            "dataset": dataset,
            "split": split,
        }

    table = reproduce.table(
        [
            *(row("v4", 0.3), row("v4", 0.4), row("v1", 0.5)),
            *(row("v4", 0.9, epochs=10), row("v4", 0.8, epochs=1)),
            row("v4", 0.2, options="--lr 0.002"),
            *(row("v4", 5, dataset="signs"), row("v4", 0.6, split="held_out")),
        ]
    )
    tables = re.split(r"(?m)^(?=Test error|Error on)", table)[1:]
    held_out, long, short, signs = tables
    assert "percent, signs, 20 epochs and more:" in signs and "paper" not in signs
    assert held_out.startswith("Error on held-out training images in percent, mnist,")
    assert "| CapsNet-v4 | 3 | yes | 0.60, 1 trial |\n" in held_out
    assert "CapsNet-v1" not in held_out + signs + short  # none was run there
    assert "| reconstruction | `default`, 50 | `default`, 50 (2) | CapsN" in long
    assert "| 3 | yes | 0.35 (0.071), 2 trials | 0.20, 1 trial | 0.34 (0.016) |" in long
    assert "\n- `default`, 50: no flags\n" in long
    assert "\n- `default`, 50 (2): `--lr 0.002`\n" in long
    assert "| CapsNet-v1 | 1 | no | 0.50, 1 trial |  |" in long
    assert "| CapsNet-v2 | 1 | yes |  |  | 0.36 (0.009) |" in long
    assert "| Baseline CNN | – | – |  |  | – | 0.39 |" in long
    assert "percent, mnist, runs of fewer than 20 epochs:" in short
    assert "| reconstruction | `default`, 10 | `default`, 1 |\n" in short
    assert "| CapsNet-v4 | 3 | yes | 0.90, 1 trial | 0.80, 1 trial |\n" in short


def test_the_baselines_have_as_many_parameters_as_is_said_channels_last_always():
    keras.config.set_image_data_format("channels_first")
    try:
        counts = [
            reproduce.baseline_cnn((28, 28, 1), 10).count_params(),
            reproduce.pairs_cnn((36, 36, 1), 10).count_params(),
            reproduce.affine_cnn((40, 40, 1), 10).count_params(),
        ]
    finally:
        keras.config.set_image_data_format("channels_last")
    assert counts == [35_445_522, 24_563_978, 12_767_498]  # the paper: 35.4M, 24.56M
