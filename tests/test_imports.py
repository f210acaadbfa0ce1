"""The order of the packages: imports point down only, and only some packages may know torch or MLflow."""

from __future__ import annotations

import pytest
from house import find_circles, find_climbs, list_arrows, list_imports, list_modules, package_of

# From the ground up; what stands on one floor is independent of each other.
FLOORS = [
    {"errors", "status", "__init__"},
    {"files", "commands"},
    {"models", "data", "tracking"},
    {"spec_builder", "console", "history"},
    {"analysis", "exchange"},
    {"reports"},
    {"training", "meta_query"},
    {"evaluate"},
    {"train"},
    {"tuning"},
    {"server"},
    {"cli"},
    {"__main__"},
]
# Who may import torch when imported, and who may know MLflow at all; a room may be named beside the packages.
TORCH = {"models", "data", "spec_builder", "training", "tuning", "reports.attempt_files"}
MLFLOW = {"tracking", "history.api_reader", "exchange", "tuning.recording", "server"}


def may(module: str, allowed: set[str]) -> bool:
    return not module.endswith(".cli") and bool({module, package_of(module)} & allowed)


def test_every_package_has_its_floor() -> None:
    assert {package_of(module) for module in list_modules()} == set().union(*FLOORS)


def test_imports_point_down() -> None:
    assert find_climbs(FLOORS) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert find_circles(list_arrows()) == []


@pytest.mark.parametrize("module", list_modules())
def test_only_some_rooms_know_torch_and_mlflow(module: str) -> None:
    at_once = {name.split(".")[0] for name in list_imports(module, when_imported=True)}
    assert not at_once & {"torch", "torchvision"} or may(module, TORCH)
    assert "mlflow" not in {name.split(".")[0] for name in list_imports(module)} or may(module, MLFLOW)


def test_the_server_never_imports_torch_itself() -> None:
    known = {
        name.split(".")[0]
        for module in list_modules()
        if package_of(module) == "server"
        for name in list_imports(module)
    }
    assert not known & {"torch", "torchvision"}


@pytest.mark.parametrize("module", list_modules())
def test_no_room_holds_two_concepts(module: str) -> None:
    assert len(list_modules()[module].read_text(encoding="utf-8").splitlines()) <= 500


def test_public_names_are_where_they_are_said_to_be() -> None:
    import mlmeta

    assert all(getattr(mlmeta, name) is not None for name in mlmeta.__all__)
