"""What depends on the backend, on every other one that is installed."""

import importlib.util
import os
import subprocess
import sys

import keras
import pytest
from helpers import ROOT, without_tensorflow

OTHERS = [
    name
    for name in ("tensorflow", "jax", "torch")
    if importlib.util.find_spec(name) and name != keras.backend.backend()
]
TESTS = [
    "test_architecture.py::test_a_file_of_weights_brings_its_own_network",
    "test_capsulelayers.py",
    "test_capsulenet.py",
    "test_data_batches.py::test_batches_on_the_device_are_the_same",
    "test_data_changes.py::test_shifts_move_whole_pixels_and_fill_with_zeros",
    "test_data_pairs.py::test_pairs_on_the_device_are_the_same",
    "test_dimensions.py::test_images_are_those_of_the_model",
    "test_dimensions.py::test_manipulation_changes_one_dimension_a_row",
    "test_inference.py::test_tensors_are_images_too",
    "test_networks_efficient.py::test_a_convolution_by_place_is_that_of_keras",
    "test_networks_normalization.py",
    "test_networks_photo.py::test_any_keras_model_may_be_the_stem",
    "test_networks_photo.py::test_shared_transformations_are_those_of_a_layer_whose_weights_repeat",
    "test_routing.py",
    "test_rules.py::test_all_digits_of_float64_are_right",
    "test_rules.py::test_attention_is_that_of_efficient_capsnet",
    "test_rules.py::test_close_logits_are_told_apart_in_float64",
    "test_rules.py::test_max_min_of_predictions_that_all_agree_equally_is_one",
    "test_rules.py::test_outputs_and_gradients_are_those_of_the_formulas",
    "test_rules.py::test_second_derivatives_are_those_of_the_formulas",
    "test_several.py",
    "test_spectral.py",
    "test_told_apart.py::test_each_of_a_pair_is_drawn_from_its_own_capsule",
    "test_training_callbacks.py::test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved",
    "test_training_callbacks.py::test_averaged_weights_are_validated_kept_and_what_a_run_ends_with",
    "test_training_callbacks.py::test_averaging_does_not_change_the_steps",
    "test_training_callbacks.py::test_capsules_of_length_zero_are_warned_of",
    "test_training_callbacks.py::test_weights_broken_by_the_last_step_are_noticed_too",
    "test_training_fit.py::test_a_seed_makes_training_repeatable",
    "test_training_fit.py::test_every_epoch_is_trained_on_its_own_order",
    "test_training_fit.py::test_the_last_two_checkpoints_are_kept",
    "test_training_fit.py::test_the_log_has_one_row_an_epoch",
    "test_training_fit.py::test_the_weights_written_are_the_trained_ones",
    "test_training_fit.py::test_training_leaves_its_files",
    "test_training_fit.py::test_training_learns",
    "test_training_fit.py::test_validation_figures_are_exact_with_a_smaller_last_batch",
    "test_training_resume.py::test_a_run_in_parts_ends_as_one_in_one_piece",
    "test_training_resume.py::test_dropout_goes_on_as_if_never_stopped",
    "test_training_resume.py::test_resuming_a_finished_run_trains_no_more",
    "test_training_signals.py::test_a_signal_ends_the_step_saves_and_says_how_to_go_on[SIGTERM-143]",
    "test_verdict.py::test_a_training_keeps_what_its_images_changed_anew_tell",
    "test_verdict.py::test_two_is_what_the_second_capsule_helps_to_draw",
    "test_weights_files.py::test_every_format_loads_into_all_three_models",
    "test_weights_files.py::test_files_that_keras_2_wrote",
    "test_weights_files.py::test_keras_itself_reads_our_file",
    "processes/test_accelerator.py",
]

ELSEWHERE = [
    # What no backend changes: files, texts, memory, shapes and first weights.
    *("damaged", "foreign", "refused", "large_pictures", "alive", "paper_s", "stacked"),
    "byte_order",
    # Each saver and each format once: they are independent.
    *("h5-1", "h5-2", "keras-1", "keras-2"),
    # What a harder case tells too: 50 classes, a bias and a leak, more iterations.
    *("10_classes", "blocks-1", "blocks-2", "whole-2", "whole-3"),
    # Pairs of what is independent: the squash follows the routing, by blocks or not.
    "(blocks or second) and (bias or exponential or squashed)",
    "second and (whole-True or blocks-False)",
    # Drawn on the host; an optimizer of Keras' own; a warning that does not come.
    *("augmentation", "in_one_piece and lamb", "length_zero and False"),
    # What others of them say: the forms of a layer, one output of two, one of two losses.
    *("form_of_the_convolutions", "without_decoder_gives", "where_a_decoder_draws"),
    "keras_gives and function",
]
"""Tests of those files that another backend does without."""

ALONE = {
    # Normalization is Keras' own there, and formulas are those of the test below.
    "jax": ["test_networks_normalization", "those_of_the_formulas and whole"],
}
"""What one of them does without, besides."""


def run_on(backend, *arguments, **environment):
    """Run tests on a backend, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backend(backend, tmp_path):
    run_on(
        backend,
        *("-k", f"not ({' or '.join([*ELSEWHERE, *ALONE.get(backend, [])])})"),
        *(f"tests/{name}" for name in TESTS),
        # Most of the time goes into compiling for JAX what runs once or is the same
        # for several models.
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


@pytest.mark.skipif("jax" not in OTHERS, reason="JAX beside the backend of the tests")
def test_numbers_are_right_as_jax_computes_them_for_users(tmp_path):
    without = without_tensorflow(tmp_path)
    # Optimized, XLA computes a number anew in each place and may round it differently.
    name = "test_outputs_and_gradients_are_those_of_the_formulas"
    run_on(
        "jax", f"tests/test_rules.py::{name}", "-k", "whole and not second", **without
    )
    # And float64 is there where the whole process has it.
    whole = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run_on("jax", "tests/test_rules.py", "-k", "float64", **whole, **without)
