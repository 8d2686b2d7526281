"""The column table and the label coding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.examples import Examples, encode_labels, label_names
from fl_app.errors import DataError


def test_take_picks_rows_of_lists_and_arrays_in_the_given_order() -> None:
    """Rows are repeated and reordered as asked, dtype and trailing axes stay."""
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    table = Examples({"text": ["a", "b", "c", "d"], "image": images}).take(np.array([3, 0, 3]))

    assert len(table) == 3
    assert table.column("text") == ["d", "a", "d"]
    np.testing.assert_array_equal(table.column("image"), images[[3, 0, 3]])
    assert np.asarray(table.column("image")).dtype == np.uint8


def test_take_nothing() -> None:
    """An empty choice is an empty table with the same columns."""
    table = Examples({"text": ["a"], "n": np.array([1])}).take([])
    assert (len(table), list(table.columns)) == (0, ["text", "n"])


@pytest.mark.parametrize("columns", [{}, {"a": [1, 2], "b": [1]}])
def test_columns_that_are_no_table(columns: dict[str, list[int]]) -> None:
    """No columns, or columns of different length, are refused."""
    with pytest.raises(DataError, match="equally long"):
        Examples(columns)


def test_missing_column_lists_those_that_exist() -> None:
    """The error says what could have been meant."""
    with pytest.raises(DataError, match=r"no column 'txt'; the columns are: text, label"):
        Examples({"text": ["a"], "label": ["x"]}).column("txt")


def test_integer_labels_sort_by_value_and_words_by_letter() -> None:
    """The class index of ten-and-more classes follows the number, not its first digit."""
    assert label_names(["10", "2", "-1"], np.array([2, 30])) == ("-1", "2", "10", "30")
    assert label_names(["10", "2", "b"]) == ("10", "2", "b")


@settings(derandomize=True, max_examples=50)
@given(st.lists(st.one_of(st.integers(-50, 50), st.text("abc", min_size=1)), min_size=1))
def test_codes_decode_to_the_labels(values: list[int | str]) -> None:
    """Looking the code up in the names gives the label back, for words and integers mixed."""
    names = label_names(values)
    codes = encode_labels(Examples({"label": values}), "label", names)
    assert codes.dtype == np.int64
    assert [names[code] for code in codes] == [str(value) for value in values]


def test_unknown_label_names_label_row_and_the_known_ones() -> None:
    """A test split may hold a class that nobody trained on."""
    table = Examples({"label": ["pos", "neg", "neutral"]})
    with pytest.raises(DataError, match=r"row 2: the label 'neutral'.*\(neg, pos\)"):
        encode_labels(table, "label", ("neg", "pos"))


@pytest.mark.parametrize("gap", [None, ""])
def test_row_without_label(gap: str | None) -> None:
    """A gap is not a class."""
    with pytest.raises(DataError, match="row 1 has no label"):
        label_names(["pos", gap])
