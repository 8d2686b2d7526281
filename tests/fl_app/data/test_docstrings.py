"""The standard library's docstrings as a data set."""

import ast
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from fl_app.data import docstrings
from fl_app.data.docstrings import CHAPTERS, load_docstrings
from fl_app.data.leaks import find_leaks, fold
from fl_app.errors import DataError

_STDLIB = Path(sysconfig.get_paths()["stdlib"])


def test_every_chapter_is_large_enough_in_both_parts() -> None:
    """Enough rows for a standard error below 1.6 points at any accuracy, no dominant class."""
    splits = load_docstrings()
    assert len(splits.train) > 2500
    assert len(splits.test) > 1000
    for part, least in ((splits.train, 50), (splits.test, 30)):
        sizes = Counter(part.column("label"))
        assert sizes.keys() == CHAPTERS.keys()
        assert min(sizes.values()) >= least
        assert max(sizes.values()) < 0.25 * len(part)


def test_texts_are_distinct_and_no_test_text_is_nearly_one_of_training() -> None:
    splits = load_docstrings()
    texts = [*splits.train.column("text"), *splits.test.column("text")]
    assert len({fold(text) for text in texts}) == len(texts)
    assert all(4 <= len(text.split()) <= 40 for text in texts)
    assert find_leaks(list(splits.train.column("text")), list(splits.test.column("text"))) == []


def test_a_known_docstring_is_there_under_its_chapter() -> None:
    """Read on its own way: ``ast`` on one file, not the loader's walk."""
    tree = ast.parse((_STDLIB / "textwrap.py").read_text(encoding="utf-8"))
    (wrap,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "wrap"]
    text = " ".join((ast.get_docstring(wrap) or "").split("\n\n")[0].split())
    splits = load_docstrings()
    rows = [
        label
        for part in splits.parts().values()
        for found, label in zip(part.column("text"), part.column("label"), strict=True)
        if found == text
    ]
    assert rows == ["text"]


def test_train_and_test_share_no_module() -> None:
    """A module's texts all go to one part."""
    splits = load_docstrings()
    test = set(splits.test.column("text"))
    train = set(splits.train.column("text"))
    for name in ("json/decoder.py", "argparse.py", "asyncio/tasks.py", "random.py", "heapq.py"):
        texts = set(docstrings._texts(_STDLIB / name))
        assert texts
        assert not (texts & train and texts & test)


def test_no_module_has_two_chapters() -> None:
    modules = [module for words in CHAPTERS.values() for module in words.split()]
    assert len(set(modules)) == len(modules)


def test_a_standard_library_without_sources_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some minimal installations hold compiled files alone."""
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"data=docstrings.*data=embedded"):
        load_docstrings.__wrapped__()
