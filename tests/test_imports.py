"""The layers: imports point down only, and only some modules may know torch or MLflow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlmeta"
# From the ground up. A module may import those below it and those of its own layer.
LAYERS = [
    {"errors", "status"},
    {"catalog", "values", "params", "architecture", "state_folder", "operations", "row_file", "store_uri"},
    {"interruption", "jobs", "job_queue"},
    {"json_stream", "loss_curve", "text_table", "report_html", "filter_tree", "functional_anova"},
    {"specs", "search_space", "schema", "stop_rules", "commands", "documents", "data_roots"},
    {"history_rows", "history_table", "history_cache"},
    {"filter_syntax", "column_values", "table_output", "filters", "selection"},
    {"param_features", "attempt_features", "attempt_tables", "exchange_documents", "attempt_files"},
    {"lessons", "attempt_sample", "permutation", "marginal_effects", "importance", "rankings", "comparison"},
    {"dog_drawing", "samples", "image_ops", "metafeatures", "recorder", "outbox", "spool"},
    {"picture_files", "picture_cache", "feature_cache"},
    {"folder", "manifest", "torchvision_data", "attempt_records", "similarity"},
    {"training_features", "surrogate", "proposals", "shipped"},
    {"pictures", "plots", "curves", "stopping", "progress", "store", "curve_plot"},
    {"finding", "notes", "sending", "mlflow_recorder", "recovery", "tracking", "queued_runs"},
    {"tuning_runs", "history_blocks", "history_texts", "history_readers", "history_sql", "history_api", "history"},
    {"imported_runs", "exporting", "query_recording", "past_curves", "watching"},
    {"report_data", "report_figures", "report_curves", "report_effects", "report_tables", "task_map"},
    {"report_sections", "report", "paper_figures"},
    {"layers", "criteria", "transforms", "transform_plan", "refusals", "sizes", "fitting", "shapes"},
    {"weights", "checkpoints", "optimizers", "spec_builder", "decoding", "tensors"},
    {"preparation", "reports"},
    {"check", "evaluate", "transferability", "description"},
    {"train", "weight_sources"},
    {"initial_weights"},
    {"recorded_training", "attempts"},
    {"import_tasks", "importing", "import_progress", "meta_query", "new_task", "recommend"},
    {"samplers"},
    {"tuning_progress", "tuning_rounds", "tune"},
    {"job_process", "job_runner"},
    {"plugin.settings", "plugin.listening", "plugin.loopback"},
    {"plugin.limits", "plugin.answers", "plugin.runner_keeper", "plugin.server"},
    {"plugin.callers"},
    {"plugin.runs", "plugin.questions", "plugin.job_answers", "plugin.attempt_documents"},
    {"plugin.submitting", "plugin.recommend_process", "plugin.recommending"},
    {"plugin.routes", "plugin.verbs", "plugin.openapi", "plugin.page_files", "plugin.pages"},
    {"plugin.app"},
    {"cli_errors"},
    {"plugin.server_cli", "exchange_cli", "query_cli", "recommend_cli", "tune_cli", "worker_cli"},
    {"cli"},
]
COMMAND_LINE = {"cli", "cli_errors", "exchange_cli", "query_cli", "recommend_cli", "tune_cli", "worker_cli"}
_FIRST_WITH_TORCH = next(index for index, layer in enumerate(LAYERS) if "layers" in layer)
PLUGIN = {module for layer in LAYERS for module in layer if module.startswith("plugin.")}
WITHOUT_TORCH = set().union(*LAYERS[:_FIRST_WITH_TORCH]) | COMMAND_LINE | PLUGIN
WITHOUT_TORCH |= {"meta_query", "job_process", "job_runner"}
KNOW_MLFLOW = {"store", "finding", "notes", "sending", "mlflow_recorder", "recovery", "tracking", "cli"}
KNOW_MLFLOW |= {"store_uri", "history_api", "imported_runs", "importing", "exporting", "query_recording", "tuning_runs"}
KNOW_MLFLOW |= {"queued_runs"}
# They are parts of MLflow's server.
KNOW_MLFLOW |= PLUGIN


def modules() -> list[str]:
    """Return the modules, those of a package inside with its name: ``plugin.settings``."""
    files = (file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py"))
    return sorted(".".join(file.parts) for file in files if not file.stem.startswith("__"))


def file_of(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def imported(module: str, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else [n for n in ast.walk(tree) if not _is_entry_point(n)]
    inside_main = {id(n) for main in ast.walk(tree) if _is_entry_point(main) for n in ast.walk(main)}
    names = set()
    for node in nodes:
        if id(node) in inside_main:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _is_entry_point(node: ast.AST) -> bool:
    """`main` is where a process starts, on top of everything: it may call the command line."""
    return isinstance(node, ast.FunctionDef) and node.name == "main"


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_its_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    for name in imported(module):
        target = name.removeprefix("mlmeta.")
        if name.startswith("mlmeta.") and target in modules():
            assert layer_of(target) <= layer_of(module), f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(WITHOUT_TORCH))
def test_lower_layers_import_no_torch_when_they_are_imported(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module, top_level_only=True)}
    assert not roots & {"torch", "torchvision"}


@pytest.mark.parametrize("module", sorted(PLUGIN))
def test_the_server_never_imports_torch_itself(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(module)} & {"torch", "torchvision"}


@pytest.mark.parametrize("module", modules())
def test_only_the_tracking_knows_mlflow(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert ("mlflow" in roots) <= (module in KNOW_MLFLOW)


@pytest.mark.parametrize("module", modules())
def test_no_module_holds_two_concepts(module: str) -> None:
    assert len(file_of(module).read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names_are_where_they_are_said_to_be() -> None:
    import mlmeta

    assert all(getattr(mlmeta, name) is not None for name in mlmeta.__all__)
