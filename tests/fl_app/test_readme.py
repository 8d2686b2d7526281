"""The commands of README and results are ones that the program takes."""

import re
from pathlib import Path

import pytest

from fl_app.config import load_config
from strategies.fit import require_fit

ROOT = Path(__file__).resolve().parents[2]
TEXT = "".join(
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")
)
OVERRIDES = re.findall(r"overrides=\"([^\"]*)\"'", TEXT)
MODULES = sorted(set(re.findall(r"python -m (scripts\.\w+)", TEXT)))
FIGURES = re.findall(r"\]\((?:docs/)?(figures/[^)]*)\)", TEXT)


def test_the_readme_has_commands() -> None:
    assert len(OVERRIDES) > 10
    assert len(MODULES) > 10


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_choices_of_the_readme_exist_and_go_together(overrides: str) -> None:
    require_fit(load_config(overrides))


@pytest.mark.parametrize("module", MODULES)
def test_scripts_of_the_readme_are_there(module: str) -> None:
    assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()


@pytest.mark.parametrize("figure", FIGURES)
def test_pictures_are_there(figure: str) -> None:
    assert (ROOT / "docs" / figure).is_file()
