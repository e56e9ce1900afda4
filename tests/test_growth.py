"""The benchmark of growth sees a curve that bends, and the program's own do not."""

import sys

import pytest
import torch

from benchmarks import growth
from benchmarks.growth import (
    CountingMode,
    Curve,
    describe,
    grow_records,
    grow_steps,
    make_curves,
)


@pytest.mark.parametrize(
    ("values", "model", "is_bent"),
    [
        ((10, 20, 40, 80), "linear", False),  # sizes double: a line through nothing
        ((110, 120, 140, 180), "linear", False),  # on top of a constant
        ((100, 150, 175, 187), "linear", False),  # flattens
        ((100, 100, 100, 100), "linear", False),
        ((800, 400, 200, 100), "linear", False),  # falls
        ((10, 40, 160, 640), "linear", True),  # a square
        ((1000, 1010, 1040, 1160), "linear", True),  # a small square on top of a constant
        ((100, 100, 100, 200), "linear", True),  # from some size on
        ((595, 595, 595, 595), "constant", False),
        ((595, 560, 600, 610), "constant", True),
        ((0, 0, 0, 0), "constant", False),
    ],
)
def test_a_curve_that_bends_upward_is_seen(values, model, is_bent):
    curve = Curve("sizes", "things", (1, 2, 4, 8), values, model)
    assert curve.is_bent == is_bent
    assert ("**bends upward**" in "\n".join(describe([curve]))) == is_bent


def test_a_step_costs_the_same_however_many_records_there_are():
    curves = {curve.counted: curve for curve in grow_records((250, 500, 1000))}
    assert not [curve for curve in curves.values() if curve.is_bent], describe([*curves.values()])
    for rows in ("packed", "single"):
        values = curves[f"calls of a step, {rows} rows"].values
        assert min(values) > 100
        assert len(set(values)) == 1
    tokenized = curves["calls to tokenize"].values
    assert tokenized[2] > 1.8 * tokenized[1]  # so the counting sees the records


def test_operators_and_bytes_of_a_step_grow_in_lines():
    curves = grow_steps((2, 4, 8), (8, 16, 32), (1, 2, 3), ())
    assert not [curve for curve in curves if curve.is_bent], "\n".join(describe(curves))
    counted = {(curve.grown.split()[0], curve.counted): curve.values for curve in curves}
    assert counted["layers", "operators"][2] > counted["layers", "operators"][0]
    assert counted["documents", "operations of products"][2] > (
        3.9 * counted["documents", "operations of products"][0]
    )
    assert min(counted["experts", "bytes sent or received"]) > 0


@pytest.mark.slow
def test_what_a_rank_does_grows_in_lines_with_the_ranks():
    curves = grow_steps((), (), (), (1, 2, 4, 8))
    assert not [curve for curve in curves if curve.is_bent], "\n".join(describe(curves))


def test_work_for_each_pair_of_records_ends_in_exit_code_1(monkeypatch, capsys):
    prepare, grow = growth.prepare_dataset, growth.grow_records

    def prepare_in_squares(config, tokenizer):
        dataset = prepare(config, tokenizer)
        for _ in range(len(dataset) ** 2 // 10):  # a small share: 100,000 of 400,000 calls
            len(dataset)
        return dataset

    monkeypatch.setattr(growth, "prepare_dataset", prepare_in_squares)
    monkeypatch.setattr(growth, "grow_records", lambda _: grow((250, 500, 1000)))
    monkeypatch.setattr(growth, "grow_steps", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["growth"])
    assert growth.main() == 1
    bent = [line for line in capsys.readouterr().out.splitlines() if "**bends upward**" in line]
    assert len(bent) == 1
    assert bent[0].startswith("| calls to tokenize |")


def test_operators_for_each_pair_of_things_bend_their_curve():
    sizes, counts = (8, 16, 32, 64), []
    for size in sizes:
        with CountingMode() as counting:
            for _ in range(1000 + 100 * size + size**2):
                torch.zeros(1).add(1)
        counts.append(dict(counting.counts))
    bent = {curve.counted: curve.is_bent for curve in make_curves("things", sizes, counts)}
    assert bent == {"operators": True, "bytes made": True}
