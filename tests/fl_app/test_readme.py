"""The README's commands are ones that the program takes."""

import re
from pathlib import Path

import pytest

from fl_app.config import load_config
from strategies.fit import require_fit

README = Path(__file__).resolve().parents[2] / "README.md"
OVERRIDES = re.findall(r"overrides=\"([^\"]*)\"'", README.read_text(encoding="utf-8"))
MODULES = sorted(set(re.findall(r"python -m (scripts\.\w+)", README.read_text(encoding="utf-8"))))


def test_the_readme_has_commands() -> None:
    assert len(OVERRIDES) > 10
    assert len(MODULES) > 10


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_choices_of_the_readme_exist_and_go_together(overrides: str) -> None:
    require_fit(load_config(overrides))


@pytest.mark.parametrize("module", MODULES)
def test_scripts_of_the_readme_are_there(module: str) -> None:
    assert (README.parent / Path(*module.split("."))).with_suffix(".py").is_file()
