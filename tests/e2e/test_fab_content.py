"""The app bundle holds what the app needs, nothing else, and asks Flower to install nothing."""

import io
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[2]
CODE = ["fl_app", "strategies", "clients"]


@pytest.fixture(scope="module")
def bundle() -> set[str]:
    """The names of the files Flower bundles."""
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def project() -> dict:
    """The content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(folder: str, pattern: str) -> set[str]:
    """Returns the files below a folder, as the bundle names them."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_the_bundle_is_exactly_the_app(bundle):
    expected = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    for folder in CODE:
        expected |= names(folder, "*.py")
    expected |= names("conf", "*.yaml")
    expected |= names("fl_app/data/utterances", "*.jsonl")
    assert bundle == expected


def test_the_walk_met_what_the_app_cannot_do_without(bundle):
    # An empty walk on both sides would agree as well.
    assert {"fl_app/server_app.py", "fl_app/client_app.py", "conf/config.yaml"} <= bundle
    assert any(name.endswith(".jsonl") for name in bundle)


def test_no_test_or_script_is_bundled(bundle):
    assert not [name for name in bundle if re.search(r"(^|/)(tests?|scripts)(/|$|_)", name)]


def test_flower_would_drop_no_module_by_its_name():
    # Flower leaves out every file named like a test, also in the middle of a package.
    modules = {Path(name).name for folder in CODE for name in names(folder, "*.py")}
    assert not [name for name in modules if re.fullmatch(r"test_.*|.*_test\.py", name)]


def requirement_names(requirements: list[str]) -> set[str]:
    """Returns the distribution names of requirement strings, in normal form."""
    heads = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", head.group()).lower() for head in heads if head}


def test_flower_is_told_to_install_nothing(project):
    wanted = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    excluded = project["tool"]["uv"]["exclude-dependencies"]
    assert set(excluded) == requirement_names(wanted)
    assert len(excluded) == len(set(excluded))


def test_every_requirement_is_pinned_as_in_the_constraints(project):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line for line in lines if line and not line.startswith("#")}
    normal = {
        re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower(): pin.split("==")[1] for pin in pins
    }
    wanted = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in wanted:
        assert "==" in requirement, f"{requirement} is not pinned exactly"
        (name,) = requirement_names([requirement])
        assert normal[name] == requirement.split("==")[1]
