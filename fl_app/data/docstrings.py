"""Real text on every machine with Python: docstrings of its standard library, by chapter.

A text is the first paragraph of a docstring; its label is the chapter of the library reference that
documents the module (neighbouring small chapters are merged). Train and test share no module and no
nearly equal text. The texts are those of the interpreter that runs, so figures compare between runs
of one Python version.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fl_app.data.examples import Examples
from fl_app.data.leaks import find_leaks, fold
from fl_app.data.source import Splits
from fl_app.errors import DataError

CHAPTERS: dict[str, str] = {
    "text": "string re textwrap difflib stringprep codecs encodings gettext locale",
    "types": "datetime _strptime zoneinfo calendar collections _collections_abc heapq bisect "
    "weakref _weakrefset types copy pprint reprlib enum graphlib",
    "numbers": "numbers decimal _pydecimal fractions random statistics functools operator",
    "files": "pathlib posixpath ntpath genericpath fileinput stat filecmp tempfile glob fnmatch "
    "linecache shutil pickle copyreg shelve dbm sqlite3 gzip bz2 lzma _compression zipfile tarfile",
    "formats": "csv configparser tomllib netrc plistlib hashlib hmac secrets json email mailbox "
    "mimetypes base64 quopri html xml",
    "system": "os io _pyio argparse getopt optparse logging getpass platform ctypes cmd shlex",
    "concurrency": "threading _threading_local multiprocessing concurrent subprocess sched queue "
    "contextvars asyncio socket ssl selectors signal",
    "internet": "webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid socketserver "
    "xmlrpc ipaddress",
    "development": "typing pydoc doctest unittest bdb pdb cProfile profile pstats timeit trace "
    "tracemalloc venv zipapp",
    "runtime": "sysconfig site warnings dataclasses contextlib abc traceback inspect code codeop "
    "zipimport pkgutil modulefinder runpy importlib ast symtable tokenize tabnanny pyclbr "
    "py_compile compileall dis pickletools",
}
"""Chapter to top-level modules; what some distributions leave out (tkinter, say) is not there."""

_WORDS = range(4, 41)
"""How many words a text has; shorter ones say nothing, longer ones cost time."""
_TEST_SHARE = 0.2


@cache
def load_docstrings() -> Splits:
    """Returns the docstrings with the columns ``text`` and ``label`` (a chapter).

    Raises:
        DataError: the standard library is not there as source files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    chapter_of = {module: name for name, words in CHAPTERS.items() for module in words.split()}
    modules: dict[str, dict[str, list[str]]] = {chapter: {} for chapter in CHAPTERS}
    known: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        chapter = chapter_of.get(module.parts[0])
        if chapter is None or {"test", "tests"} & set(module.parts):
            continue
        texts = {fold(text): text for text in _texts(path)}
        modules[chapter][module.as_posix()] = [texts[key] for key in texts if key not in known]
        known |= texts.keys()
    if missing := sorted(chapter for chapter, found in modules.items() if len(found) < 2):
        raise DataError(
            f"data=docstrings: {root} holds too few modules for {', '.join(missing)}; install "
            "Python's standard library as source files, or choose data=embedded"
        )
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for chapter, found in modules.items():
        held_out = _held_out(found)
        for name, own in found.items():
            (test if name in held_out else train).extend((text, chapter) for text in own)
    leaks = find_leaks([text for text, _ in train], [text for text, _ in test])
    leaked = {leak.train_row for leak in leaks}
    kept = [row for number, row in enumerate(train) if number not in leaked]
    return Splits(train=_table(kept), test=_table(test))


def _held_out(modules: dict[str, list[str]]) -> set[str]:
    """Picks whole modules by the hash of their name until they hold a fifth of the texts."""
    wanted = _TEST_SHARE * sum(len(texts) for texts in modules.values())
    held_out: set[str] = set()
    rows = 0
    for module in sorted(modules, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if rows < wanted and len(held_out) < len(modules) - 1:
            held_out.add(module)
            rows += len(modules[module])
    return held_out


def _texts(path: Path) -> Iterator[str]:
    """Yields the first paragraph of each docstring of one file, in the order of the file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, documented):
            continue
        paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
        text = " ".join(paragraph.split())
        if len(text.split()) in _WORDS:
            yield text


def _table(rows: list[tuple[str, str]]) -> Examples:
    return Examples({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
