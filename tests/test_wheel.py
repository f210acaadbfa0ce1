"""The wheel holds all that an installed mlmeta needs; an editable install would hide a forgotten file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from servers import Server

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # setuptools would leave a folder `build` behind, and put what lies in it into the next wheel.
    shutil.copytree(ROOT / "mlmeta", source / "mlmeta", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "lib")
    return folder / "lib"


def list_files(folder: Path) -> set[str]:
    files = {file.relative_to(folder).as_posix() for file in (folder / "mlmeta").rglob("*") if file.is_file()}
    return {file for file in files if "__pycache__" not in file}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(unpacked: Path) -> None:
    assert list_files(unpacked) == list_files(ROOT)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_main_job_and_the_server_run_from_the_wheel(
    unpacked: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(unpacked), *sys.path]))
    code = "import mlmeta; print(mlmeta.__file__)"
    where = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert where.stdout.startswith(str(unpacked))
    document = json.loads((ROOT / "digits.json").read_text(encoding="utf-8")) | {"n_epoch": 1}
    (tmp_path / "digits.json").write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "mlmeta.train", "digits.json"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    server = Server(tmp_path, store, options=["--workers", "1", "--app-name", "mlmeta"])
    server.start()
    try:
        assert server.ask("/ajax-api/mlmeta/attempts")[1]["total"] == 1
        assert server.ask("/mlmeta/")[0] == 200
    finally:
        server.stop()
