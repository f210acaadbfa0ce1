"""mlmeta: spend less time tuning the next model.

The names below are imported when they are first used, so that ``import mlmeta`` needs neither torch nor MLflow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Attempt": "mlmeta.commands.documents",
    "TestCommands": "mlmeta.commands.documents",
    "TrainCommands": "mlmeta.commands.documents",
    "MlmetaError": "mlmeta.errors",
    "best_values": "mlmeta.meta_query",
    "build_criterion": "mlmeta.spec_builder",
    "build_image_ops": "mlmeta.spec_builder",
    "build_model": "mlmeta.spec_builder",
    "build_optimizer": "mlmeta.spec_builder",
    "build_scheduler": "mlmeta.spec_builder",
    "build_target_transform": "mlmeta.spec_builder",
    "build_transform": "mlmeta.spec_builder",
    "compare_attempts": "mlmeta.meta_query",
    "export_attempts": "mlmeta.exchange.exporting",
    "hyperparameter_importance": "mlmeta.meta_query",
    "import_attempts": "mlmeta.exchange.importing",
    "leaderboard": "mlmeta.meta_query",
    "learning_curves": "mlmeta.meta_query",
    "load_attempts": "mlmeta.history.loading",
    "load_curves": "mlmeta.history.loading",
    "marginal_effect": "mlmeta.meta_query",
    "pareto_front": "mlmeta.meta_query",
    "search_attempts": "mlmeta.meta_query",
    "similar_tasks": "mlmeta.meta_query",
    "check_commands": "mlmeta.training.preparation",
    "evaluate_attempt": "mlmeta.evaluate",
    "find_pictures": "mlmeta.data.pictures",
    "load_test_commands": "mlmeta.commands.parsing",
    "load_train_commands": "mlmeta.commands.parsing",
    "make_document": "mlmeta.tracking.attempts",
    "Recommendation": "mlmeta.tuning.recommend",
    "recommend_commands": "mlmeta.tuning.recommend",
    "resume_attempt": "mlmeta.train",
    "resume_tuning": "mlmeta.tuning.tune",
    "run_attempt": "mlmeta.train",
    "tune_task": "mlmeta.tuning.tune",
    "TuningSettings": "mlmeta.tuning.tune",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # the names are those of _EXPORTS


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mlmeta' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
