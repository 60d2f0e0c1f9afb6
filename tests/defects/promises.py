"""Where each known defect of Beam is tested: a row of the page's tables, or tests of this package alone."""

from __future__ import annotations

#: What is wrong in Beam, and who tests that it is right here: the function of a row, or ``file::test``.
PROMISES: dict[str, tuple[str, ...]] = {
    # Wrong results, lost records
    "results are cut short": (
        "short_result",
        "test_transform.py::test_a_step_that_returns_too_few_results_is_an_error_with_both_lengths",
    ),
    "outputs are not split by structure": ("pair", "layers", "loss"),
    "one bad element takes its batch with it": (
        "one_bad",
        "one_in_a_hundred",
        "test_dead_letters.py::test_one_bad_element_among_many_goes_alone",
    ),
    "the threshold counts batches": (
        "threshold",
        "test_dead_letters.py::test_the_threshold_counts_records_not_batches",
    ),
    "results have the end of the window as timestamp": (
        "timestamps",
        "test_transform.py::test_each_result_keeps_its_own_timestamp_and_window",
    ),
    "rows of PyTorch drag their batch along": (
        "view",
        "test_pytorch_inference.py::test_results_own_their_memory_and_have_no_gradient",
    ),
    "some handlers ignore refreshes and name no model": (
        "test_xgboost_inference.py::test_a_new_model_replaces_the_old_one_which_beam_ignores",
        "test_onnx_inference.py::test_a_new_model_replaces_the_old_one_which_beam_ignores",
        "frameworks/huggingface/test_pipeline.py::test_update_model_path_replaces_the_model",
    ),
    "the pandas handler ignores inference_args": ("pandas_arguments",),
    "calls share one inference_args": (
        "shared_arguments",
        "test_remote.py::test_no_call_sees_what_another_made_of_the_arguments",
    ),
    # Broken options
    "max_batch_weight": ("weight", "weight_over_bundles"),
    "element_size_fn": ("heavy", "heavy_over_bundles"),
    "batch_length_fn": ("lengths",),
    "models per key with functions or without batching": (
        "per_key_preprocess",
        "per_key_postprocess",
        "per_key_no_batching",
    ),
    "a keyed handler batches again": ("keyed_no_batching",),
    "Hugging Face needs TensorFlow": (
        "test_huggingface_inference.py::test_imports_without_tensorflow_unlike_beams_module",
    ),
    "a Hugging Face pipeline does not batch, and fails on one element": (
        "frameworks/huggingface/test_pipeline.py::test_calls_the_model_once_for_each_batch",
        "frameworks/huggingface/test_pipeline.py::test_returns_one_result_for_each_element_of_any_batch",
    ),
    "unknown keywords are swallowed": ("misspelt", "misspelt_step"),
    "some models cannot be shared": (
        "unshareable",
        "test_sharing.py::test_any_object_can_be_a_model_that_is_shared",
    ),
    "model_identifier works across processes alone": ("two_steps",),
    # Several models, and updates
    "batches are cut by key": ("many_keys",),
    "the hint is for each instance": ("hint", "test_sharing.py::test_threads_race_for_a_budget"),
    "a failed load leaves its key marked loaded": ("failed_load",),
    "an unchanged refresh costs": (
        "unchanged",
        "test_refresh.py::test_an_unchanged_refresh_loads_nothing",
    ),
    "refreshes that alternate load each time": ("alternating",),
    "a shared model leaks on a refresh": (
        "leak",
        "test_sharing.py::test_a_large_model_is_freed_after_a_refresh_whatever_thread_called_it_last",
    ),
    "a broken new model stops the pipeline": (
        "broken",
        "test_refresh.py::test_a_broken_new_model_leaves_the_old_one_serving",
    ),
    "handlers change themselves": ("mutated",),
    # Cost
    "the size in bytes is dear and wrong": (
        "bytes_of_tensors",
        "bytes_of_keyed_tensors",
        "pickled_for_size",
    ),
    "XGBoost predicts row by row": (
        "test_xgboost_inference.py::test_calls_the_model_once_per_batch",
    ),
    "a model of another process is an RPC a call": (
        "test_sharing.py::test_nothing_that_goes_between_processes_is_held_back",
    ),
    "a remote failure costs seconds, and requests wait for each other": ("transient", "together"),
    "batches grow whatever they weigh": ("heavy_batches",),
    "errors of lazy results are not counted": (
        "lazy_failures",
        "test_transform.py::test_a_lazy_error_is_raised_and_counted",
    ),
    "timeouts are not counted, and not told apart": (
        "timed_out",
        "own_timeout",
        "test_dead_letters.py::test_a_timeout_of_the_handlers_own_is_told_apart",
        "test_dead_letters.py::test_a_model_that_hangs_is_given_up_and_a_fresh_one_loaded",
    ),
}
