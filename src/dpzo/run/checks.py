"""Checks of a run's model on synthetic and public example rows, before any privacy budget is spent."""

from __future__ import annotations

import math
from dataclasses import replace

from dpzo.config.resolve import ResolvedConfig, ResolvedTraining
from dpzo.errors import DpzoError
from dpzo.forecast import planned_passes, records_per_unit
from dpzo.models import LoadedModel, RowShape, Shapes, Work, isolated_shapes, make_objective
from dpzo.models.conformance import check_conformance
from dpzo.models.round_trip import check_round_trip
from dpzo.privacy import PrivacyPlan
from dpzo.run.subject import Subject, encode_examples
from dpzo.zo import evaluations


def require_conformance(subject: Subject, shape: RowShape) -> None:
    """Require that computed and saved values equal those of the original libraries; see docs/isolation.md."""
    loaded, shapes = subject.loaded, subject.shapes
    examples = encode_examples(subject)
    check_conformance(loaded, lambda rows: make_objective(loaded, rows, shapes), shape, examples)
    check_round_trip(loaded, subject.task.labels)


def isolated_or_refused(loaded: LoadedModel, shape: RowShape, training: ResolvedTraining, quantization: str) -> Shapes:
    """`isolated_shapes`, with a DpzoError for a model that cannot read such rows; it sees only synthetic tokens."""
    try:
        return isolated_shapes(loaded, shape, training.microbatch_size, training.frozen_cache)
    except (RuntimeError, IndexError, ValueError, AssertionError) as error:
        if loaded.trainable in ("prefix", "prompt"):
            raise DpzoError(
                f"--trainable {loaded.trainable}: this model's layers take no virtual tokens before padded rows "
                f"({type(error).__name__}); train lora instead"
            ) from None
        if quantization != "none":
            raise DpzoError(
                f"model.quantization {quantization}: this model's layers do not run so on this device "
                f"({type(error).__name__}); choose another, or none"
            ) from None
        raise DpzoError(
            f"--max-length {shape.max_length}: the model cannot read rows of that length ({type(error).__name__}); "
            "choose one within its positions"
        ) from None


def padded(shapes: Shapes, config: ResolvedConfig, plan: PrivacyPlan) -> Shapes:
    """`shapes` with the planned number of micro-batches, if `--constant-time` is set."""
    if not config.training.constant_time:
        return shapes
    most = records_per_unit(config.data)
    passes = planned_passes(plan.expected_batch_size, plan.num_examples, plan.steps, shapes.rows, most)
    return replace(shapes, planned_passes=passes)


def planned_work(plan: PrivacyPlan, training: ResolvedTraining, shapes: Shapes) -> Work:
    """A run's number of evaluations, which determines how many share one forward pass."""
    passes = plan.steps * (shapes.planned_passes or math.ceil(plan.expected_batch_size / shapes.rows))
    return Work(evaluations(training.estimator, plan.num_directions), training.smoothing, passes)
