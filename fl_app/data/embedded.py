"""The data set that ships with the project: utterances to a device assistant, 18 intents."""

from pathlib import Path

from fl_app.data.readers import read_table
from fl_app.data.source import Splits

FOLDER = Path(__file__).parent / "utterances"


def load_embedded() -> Splits:
    """Returns the embedded utterances with the columns ``text`` and ``label`` (a word).

    Raises:
        DataError: the files beside this module are missing or damaged (a broken installation).
    """
    key = "data=embedded"
    return Splits(
        train=read_table(FOLDER / "train.jsonl", key=key),
        test=read_table(FOLDER / "test.jsonl", key=key),
    )
