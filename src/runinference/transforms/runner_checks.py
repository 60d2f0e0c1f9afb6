"""Reject pipelines whose elements a runner would lose."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions

from runinference.errors import OptionError

_LOGGER = logging.getLogger(__name__)


def check_runner(pipeline: beam.Pipeline, inputs: Iterable[beam.PCollection]) -> None:
    """Raise `OptionError` if the runner of a pipeline would lose elements or results of an inference step.

    Log a warning if this depends on which runner Beam's ``DirectRunner`` chooses, or on the source.

    Args:
        pipeline: The pipeline.
        inputs: The PCollections that the step reads.
    """
    # By name, because importing a runner can need packages that aren't installed.
    names = {kind.__name__ for kind in type(pipeline.runner).__mro__}
    if "DaskRunner" in names:
        raise OptionError(
            "Beam's DaskRunner drops everything that a DoFn emits in finish_bundle, so the results of "
            "RunInference would be lost. To fix this, use another runner, such as FlinkRunner."
        )
    if all(pcoll.is_bounded for pcoll in inputs):
        return
    if "SparkRunner" in names:
        raise OptionError(
            "Beam's SparkRunner can't run streaming pipelines, and an input of RunInference is unbounded. To fix "
            "this, use another runner, such as FlinkRunner."
        )
    if "FlinkRunner" in names and _loses_elements_at_checkpoints(pipeline):
        _LOGGER.warning(
            "An input of RunInference is unbounded, and checkpointing_interval is set. At a checkpoint, "
            "FlinkRunner (seen with Beam 2.62) can lose the remaining elements of a splittable DoFn, such as "
            "PeriodicImpulse, without an error. To fix this, set --finish_bundle_before_checkpointing."
        )
    n_workers = pipeline.options.view_as(DirectOptions).direct_num_workers or os.cpu_count()
    if n_workers == 1:
        return
    loss = (
        f"An input of RunInference is unbounded, and there are {n_workers} workers (direct_num_workers). With more"
        " than one worker, Beam's embedded runner loses most elements of unbounded sources, without an error. To "
        "fix this, leave direct_num_workers out, or use --runner=PrismRunner."
    )
    if "FnApiRunner" in names:
        raise OptionError(loss)
    if "SwitchingDirectRunner" in names:
        _LOGGER.warning("DirectRunner may choose Beam's embedded runner. %s", loss)


def _loses_elements_at_checkpoints(pipeline: beam.Pipeline) -> bool:
    # Python has no class for these options, which are passed on to Flink.
    options = pipeline.options.get_all_options(retain_unknown_options=True)
    interval = str(options.get("checkpointing_interval") or "")
    if not interval.isdigit() or int(interval) == 0:  # -1: no checkpoints
        return False
    return str(options.get("finish_bundle_before_checkpointing", False)).lower() != "true"
