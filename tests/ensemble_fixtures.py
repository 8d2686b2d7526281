"""A tiny decoder and rows it can learn: two words are completed by one."""

import csv
from pathlib import Path

from fl_app.seeding import generator
from tests.fixtures_models import write_checkpoint


def language_words(root: Path) -> list[str]:
    """Writes model and data below a folder; returns the overrides that use them."""
    data = root / "data"
    data.mkdir()
    rng = generator(0, "language-rows")
    for name, num in (("train", 48), ("test", 16)):
        with (data / f"{name}.tsv").open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerow(["prompt", "completion"])
            for _ in range(num):
                word = int(rng.integers(4))
                table.writerow([f"w{word} w{word + 4}", f"w{word + 8}"])
    model = write_checkpoint(root / "llama", "llama", "causal_lm")
    return [
        "model=local",
        f"model.path={model}",
        "model.task=causal_lm",
        "model.max_length=10",
        "data=local",
        f"data.path={data}",
    ]
