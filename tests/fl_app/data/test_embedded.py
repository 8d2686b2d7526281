"""The utterances that ship with the project."""

from collections import Counter

from fl_app.data.embedded import FOLDER, load_embedded
from fl_app.data.examples import label_names
from fl_app.data.leaks import find_leaks, fold


def test_sizes_and_labels() -> None:
    """18 intents, 62 training and 22 test sentences each, sorted by intent."""
    splits = load_embedded()
    names = label_names(splits.train.column("label"))
    assert len(names) == 18
    assert Counter(splits.train.column("label")) == dict.fromkeys(names, 62)
    assert Counter(splits.test.column("label")) == dict.fromkeys(names, 22)
    for part in splits.parts().values():
        assert list(part.column("label")) == sorted(part.column("label"))


def test_sentences_are_distinct_plain_lower_case() -> None:
    """Spelling habits must not tell the intent, and no sentence stands twice."""
    splits = load_embedded()
    texts = [*splits.train.column("text"), *splits.test.column("text")]
    assert len({fold(text) for text in texts}) == len(texts) == 1512
    assert all(text.isascii() and text == " ".join(text.lower().split()) for text in texts)


def test_no_leak_between_train_and_test() -> None:
    """The same check as scripts/check_leaks.py."""
    splits = load_embedded()
    assert find_leaks(list(splits.train.column("text")), list(splits.test.column("text"))) == []


def test_readme_names_every_intent_and_the_licence() -> None:
    """The table beside the data is complete."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    documented = sorted(line.split("|")[1].strip() for line in rows)
    assert documented == list(label_names(load_embedded().train.column("label")))
    assert "CC0-1.0" in text
