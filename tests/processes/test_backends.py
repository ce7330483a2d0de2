"""What depends on the backend, on every other one that is installed."""

import importlib.util
import os
import subprocess
import sys

import keras
import pytest
from helpers import ROOT

OTHERS = [
    name
    for name in ("tensorflow", "jax", "torch")
    if importlib.util.find_spec(name) and name != keras.backend.backend()
]
TESTS = [
    "test_architecture.py",
    "test_capsulelayers.py",
    "test_capsulenet.py",
    "test_data_batches.py::test_batches_on_the_device_are_the_same",
    "test_data_changes.py::test_shifts_move_whole_pixels_and_fill_with_zeros",
    "test_dimensions.py",
    "test_inference.py",
    "test_networks_photo.py::test_any_keras_model_may_be_the_stem",
    "test_networks_photo.py::test_shared_transformations_are_those_of_a_layer_whose_weights_repeat",
    "test_routing.py",
    "test_rules.py::test_attention_is_that_of_efficient_capsnet",
    "test_rules.py::test_max_min_of_predictions_that_all_agree_equally_is_one",
    "test_rules.py::test_outputs_and_gradients_are_those_of_the_formulas",
    "test_rules.py::test_second_derivatives_are_those_of_the_formulas",
    "test_spectral.py",
    "test_training_callbacks.py::test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved",
    "test_training_callbacks.py::test_averaged_weights_are_validated_kept_and_what_a_run_ends_with",
    "test_training_callbacks.py::test_averaging_does_not_change_the_steps",
    "test_training_callbacks.py::test_capsules_of_length_zero_are_warned_of",
    "test_training_callbacks.py::test_weights_broken_by_the_last_step_are_noticed_too",
    "test_training_fit.py",
    "test_training_resources.py",
    "test_training_resume.py::test_a_run_in_parts_ends_as_one_in_one_piece",
    "test_training_resume.py::test_a_run_is_not_resumed_with_other_options",
    "test_training_resume.py::test_dropout_goes_on_as_if_never_stopped",
    "test_training_resume.py::test_resuming_a_finished_run_trains_no_more",
    "test_training_resume.py::test_resuming_nothing_says_so_and_starts",
    "test_training_signals.py::test_a_signal_ends_the_step_saves_and_says_how_to_go_on",
    "test_verdict.py::test_a_training_keeps_what_its_images_changed_anew_tell",
    "test_verdict.py::test_two_is_what_the_second_capsule_helps_to_draw",
    "test_weights_files.py",
    "processes/test_accelerator.py",
    "processes/test_docs.py::test_the_files_that_the_docs_name_work_when_copied",
]


@pytest.mark.parametrize("backend", OTHERS)
def test_other_backend(backend, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0"),
            *("-k", "not (damaged or foreign or refused or alive or large_pictures)"),
            *(f"tests/{name}" for name in TESTS),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            # Most of the time goes into compiling for JAX what runs once or is the same
            # for several models.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
