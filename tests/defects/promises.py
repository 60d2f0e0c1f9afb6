"""Where each known defect of Beam is tested: by a case in the tables, or by a test of this package."""

from __future__ import annotations

#: Maps each defect of Beam to the cases (function names) and tests (`file::test`) that cover it.
PROMISES: dict[str, tuple[str, ...]] = {
    # Wrong or lost results
    "too few results are accepted": (
        "short_result",
        "transforms/test_run_inference.py::test_too_few_results_raise_an_error_with_both_lengths",
    ),
    "outputs are not split by structure": ("tuple_outputs", "nested_outputs", "scalar_outputs"),
    "one failing element fails its batch": (
        "one_failing_element",
        "one_percent_failing",
        "transforms/test_dead_letters.py::test_one_failing_element_among_many_is_the_only_dead_letter",
    ),
    "the threshold counts batches": (
        "threshold",
        "transforms/test_dead_letters.py::test_the_threshold_counts_records_not_batches",
    ),
    "results have the end of the window as timestamp": (
        "timestamps",
        "transforms/test_run_inference.py::test_each_result_keeps_its_own_timestamp_and_window",
    ),
    "a PyTorch result keeps the memory of its batch": (
        "output_views",
        "test_pytorch_inference.py::test_results_own_their_memory_and_have_no_gradient",
    ),
    "some handlers ignore model updates and set no model_id": (
        "test_xgboost_inference.py::test_a_new_model_replaces_the_old_one_which_beam_ignores",
        "test_onnx_inference.py::test_a_new_model_replaces_the_old_one_which_beam_ignores",
        "frameworks/huggingface/test_pipeline.py::test_update_model_path_replaces_the_model",
    ),
    "the pandas handler ignores inference_args": ("pandas_arguments",),
    "calls share one inference_args": (
        "shared_arguments",
        "remote/test_request_batch.py::test_each_attempt_gets_its_own_copy_of_the_arguments",
    ),
    # Options
    "max_batch_weight": ("weight", "weight_across_bundles"),
    "element_size_fn": ("element_size", "element_size_across_bundles"),
    "batch_length_fn": ("lengths",),
    "per-key models with functions or without batching": (
        "per_key_preprocess",
        "per_key_postprocess",
        "per_key_no_batching",
    ),
    "a keyed handler ignores with_no_batching": ("keyed_no_batching",),
    "Hugging Face handlers require TensorFlow": (
        "test_huggingface_inference.py::test_imports_without_tensorflow_unlike_beams_module",
    ),
    "a Hugging Face pipeline is not batched and fails on one element": (
        "frameworks/huggingface/test_pipeline.py::test_calls_the_model_once_for_each_batch",
        "frameworks/huggingface/test_pipeline.py::test_returns_one_result_for_each_element_of_any_batch",
    ),
    "unknown keywords are ignored": ("misspelled", "misspelled_transform_option"),
    "some models cannot be shared": (
        "model_without_weakref",
        "serving/test_registry.py::test_any_object_can_be_a_model",
    ),
    "model_identifier only works across processes": ("shared_model_identifier",),
    # Several models and model updates
    "batches are split by key": ("many_keys",),
    "max_models_per_worker_hint applies per handler instance": (
        "max_models_hint",
        "serving/test_registry.py::test_concurrent_threads_keep_the_budget",
    ),
    "a failed load marks its key as loaded": ("failed_load",),
    "an unchanged update is slow": (
        "unchanged_update",
        "transforms/test_model_refresh.py::test_an_equal_refresh_loads_nothing",
    ),
    "alternating updates load each time": ("alternating_updates",),
    "a shared model leaks on an update": (
        "memory_after_updates",
        "serving/test_shared_process.py::test_a_refresh_frees_a_large_model_after_calls_from_several_threads",
    ),
    "a failed update stops the pipeline": (
        "failed_update",
        "transforms/test_model_refresh.py::test_the_old_model_stays_in_use_if_the_new_one_cannot_be_loaded",
    ),
    "an update modifies a handler in use": ("update_mutates_handler",),
    # Cost and metrics
    "the size in bytes is slow and wrong": (
        "bytes_of_tensors",
        "bytes_of_keyed_tensors",
        "pickled_for_size",
    ),
    "XGBoost predicts row by row": (
        "test_xgboost_inference.py::test_calls_the_model_once_per_batch",
    ),
    "a call of a shared model is an RPC": (
        "serving/test_shared_process.py::test_no_batch_is_sent_over_tcp",
    ),
    "remote retries take seconds, and requests are sequential": (
        "transient",
        "concurrent_requests",
    ),
    "the size of a batch in bytes is unlimited": ("batch_bytes",),
    "errors of lazy results are not counted": (
        "lazy_failures",
        "transforms/test_dead_letters.py::test_an_error_in_a_lazy_result_becomes_a_counted_dead_letter",
    ),
    "timeouts are not counted or distinguished": (
        "timed_out",
        "handler_timeout",
        "transforms/test_dead_letters.py::test_a_timeout_error_of_the_handler_is_not_an_inference_timeout",
        "transforms/test_dead_letters.py::test_a_call_that_exceeds_the_timeout_is_abandoned_and_the_model_is_reloaded",
    ),
}
