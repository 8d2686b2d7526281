"""The bench of combined cores runs, and notices ways that do not give the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.errors import RunError
from scripts import bench_combine
from scripts.bench_combine import Cell, bench_cell, combined, main, tolerance
from strategies.lora_space import ProductSpace


def test_every_cell_has_its_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small, so times mean nothing here; rank times devices is below and above the map's rows."""
    words = ["--shapes", "12x20", "16x16", "--ranks", "1", "4", "--devices", "2", "5"]
    main([*words, "--repeats", "2", "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    cells = {name.removesuffix("_ratio") for name in figures if name.endswith("_ratio")}
    assert len(cells) == 8
    for cell in cells:
        ratio = figures[f"{cell}_products_s"] / figures[f"{cell}_cores_s"]
        assert figures[f"{cell}_ratio"] == ratio
        assert 0.0 <= figures[f"{cell}_difference_over_bound"] <= 1.0
    assert "12x20_rank4_devices5_ratio" in capsys.readouterr().out


@pytest.mark.parametrize("has_cores", [False, True])
def test_both_ways_are_the_mean_of_products_cut_to_the_rank(has_cores: bool) -> None:
    """In float64, of whole matrices; and the bound is not so wide that anything would pass."""
    cell, shares = Cell(20, 14, 3, 4), np.array([0.1, 0.2, 0.3, 0.4])
    adapters = cell.adapters()
    factors = [[adapter[n].astype(np.float64) for n in sorted(adapter)] for adapter in adapters]
    mean = sum(share * (b @ a) for share, (a, b) in zip(shares, factors, strict=True))
    left, values, right = np.linalg.svd(mean)
    wanted = (left[:, :3] * values[:3]) @ right[:3]
    made = combined(ProductSpace(3, has_cores=has_cores), adapters, shares)
    a, b = (made[name].astype(np.float64) for name in sorted(made))
    bound = tolerance(adapters, shares)
    assert np.linalg.norm(b @ a - wanted) <= bound
    assert bound <= 1e-3 * np.linalg.norm(wanted - factors[0][1] @ factors[0][0])


def test_a_way_that_gives_another_product_ends_the_bench(monkeypatch: Any) -> None:
    def other(space: Any, adapters: Any, shares: Any) -> Any:
        last = adapters[:1] if isinstance(space.around(adapters), ProductSpace) else adapters
        return combined(space, last, np.full(len(last), 1 / len(last)))

    monkeypatch.setattr(bench_combine, "combined", other)
    with pytest.raises(RunError, match=r"9x8_rank2_devices3: .* apart, above"):
        bench_cell(Cell(9, 8, 2, 3), repeats=1, most_s=0.0)


@pytest.mark.parametrize("words", [["--ranks", "400"], ["--devices", "0"], ["--repeats", "0"]])
def test_values_out_of_range_are_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert f"{words[0]}: must be >= 1" in capsys.readouterr().err


def test_one_long_pass_is_enough(monkeypatch: Any) -> None:
    passes = []

    def counted(*given: Any) -> Any:
        passes.append(1)
        return combined(*given)

    monkeypatch.setattr(bench_combine, "combined", counted)
    bench_cell(Cell(9, 8, 2, 3), repeats=5, most_s=0.0)
    assert len(passes) == 2
