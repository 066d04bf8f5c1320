"""The harness of ``benchmarks.cpu``: groups, random order, paired ratios, absent peers, report."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cpu
from benchmarks.cpu_peers import contenders, pool, report, work
from benchmarks.cpu_peers.contenders import Contender
from benchmarks.cpu_peers.job import Job, Shape
from benchmarks.cpu_peers.pool import Process, Record, Run, WorkerFailed


@pytest.fixture
def job(model: Path, tmp_path: Path) -> Job:
    return Job("unet", model, 1, tmp_path / "cache")


class Scripted:
    """A worker process that answers from a list of seconds, and notes when it was asked."""

    log: list[str]

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.started = name, 0.0

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append(f"{self.name} ends")

    def ask(self, **order: object) -> dict[str, object]:
        if self.name == pool.CEILING:
            return {"rates": {"float32": {"torch": 100.0, "oneDNN": 120.0}}}
        if "load" in order:
            if self.name == "broken":
                raise WorkerFailed("no such file")
            return {"peak": 10}
        self.log.append(self.name)
        seconds = {"ours": 1.0, "theirs": 2.5}[self.name]
        return {"seconds": seconds, "wall": seconds, "peak": 20}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(Scripted, "log", [], raising=False)
    monkeypatch.setattr(pool, "Process", Scripted)
    return Scripted.log


def test_every_round_asks_everyone_once_and_the_order_changes(
    scripted: list[str], job: Job, tmp_path: Path
) -> None:
    run = Run(job, [Shape()], rounds=8, seed=1)
    records = [Record("ours", "float32"), Record("theirs", "float32")]
    run.group(records, tmp_path, lambda text: None)
    asked = [name for name in scripted if not name.endswith("ends")]
    rounds = [tuple(asked[i : i + 2]) for i in range(0, len(asked), 2)]
    assert len(rounds) == 9  # the first does not count
    assert {frozenset(pair) for pair in rounds} == {frozenset({"ours", "theirs"})}
    assert len(set(rounds)) == 2
    assert len(records[0].seconds[Shape()]) == len(run.rates) == 8


def test_who_fails_to_load_gets_a_remark_and_the_others_are_measured(
    scripted: list[str], job: Job, tmp_path: Path
) -> None:
    records = [Record("ours", "float32"), Record("broken", "float32")]
    Run(job, [Shape()], rounds=2).group(records, tmp_path, lambda text: None)
    assert records[1].failure == "failed: no such file" and not records[1].seconds
    assert len(records[0].seconds[Shape()]) == 2


def test_rounds_of_a_second_group_are_paired_with_its_own_measure(
    scripted: list[str], job: Job, tmp_path: Path
) -> None:
    run = Run(job, [Shape()], rounds=2)
    ours, theirs = Record("ours", "float32"), Record("theirs", "float32")
    run.group([ours], tmp_path, lambda text: None)
    run.group([ours, theirs], tmp_path, lambda text: None)
    assert list(ours.seconds[Shape()]) == [0, 1, 2, 3]
    assert list(theirs.seconds[Shape()]) == [2, 3]
    assert report.ratio(theirs.seconds[Shape()], ours.seconds[Shape()]) == report.Ratio(
        2.5, 2.5, 2.5
    )


def test_groups_hold_what_fits_and_the_measure_is_in_each() -> None:
    made = [Contender(name, "", "float32", memory=4) for name in "abcde"]
    names = [[contender.name for contender in group] for group in pool.groups(made, 10, free=125)]
    assert names == [["a", "b", "c"], ["a", "d", "e"]]
    alone = pool.groups(made, 10, free=1)
    assert [[c.name for c in group] for group in alone] == [["a", x] for x in "bcde"]


def test_ratios_are_of_rounds_that_both_took_part_in() -> None:
    theirs, ours = {0: 4.0, 1: 8.0, 5: 6.0}, {0: 2.0, 1: 2.0, 7: 1.0}
    assert report.ratio(theirs, ours) == report.Ratio(3.0, 2.0, 4.0)
    assert report.ratio({1: 1.0}, {2: 1.0}) is None


def test_the_ceiling_is_of_the_library_that_is_fastest_in_the_median() -> None:
    rates = [{"int8": {"a": rate, "b": 10.0}} for rate in (1.0, 9.0, 50.0)]
    assert report.ceilings(rates) == {"int8": ("b", 10.0)}
    assert report.ceilings([]) == {}


def test_the_table_has_figures_ratios_and_remarks() -> None:
    shape = Shape()
    ours = Record("sfumato-float32", "float32", {shape: {0: 2.0, 1: 2.0}}, cold=1.5, peak=2**30)
    theirs = Record("peer", "float32", {shape: {0: 3.0, 1: 5.0}}, distance=2e-6)
    absent = Record("other", "float32", failure="not installed: other")
    lines = report.table([ours, theirs, absent], shape, 100.0, {"float32": ("torch", 200.0)})
    assert "x sfumato-float32" in lines[0]
    assert lines[1].split()[1:7] == ["2.000", "2.000-2.000", "50", "25%", "1024", "1.5"]
    assert "2.0e-06" in lines[2] and "2.00 (1.50-2.50)" in lines[2]
    assert lines[3].split(maxsplit=1) == ["other", "not installed: other"]


def test_operations_are_those_of_the_configuration(job: Job) -> None:
    small, large = (work.operations(job, Shape(size)) for size in (64, 128))
    assert large["convolution"] == pytest.approx(4 * small["convolution"], rel=1e-3)
    assert large["attention"] > 4 * small["attention"]
    twice = work.operations(job, Shape(64, batch=2))
    assert sum(twice.values()) == pytest.approx(2 * sum(small.values()), rel=1e-3)


def test_operations_of_a_linear_layer_are_two_for_each_weight_and_token(job: Job) -> None:
    text = Job("text", job.model, 1, job.cache)
    counted = work.operations(text, Shape())["linear"] * 1e9
    config = text.config("text_encoder")
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights = config["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)
    assert counted == 2 * weights * 2 * 77


def test_an_absent_peer_and_a_part_that_it_lacks_are_remarks(job: Job) -> None:
    made = [
        Contender("absent", "", "float32", needs=("a_package_that_nobody_has",)),
        Contender("networks", "", "float32", parts=("vae",)),
    ]
    records = pool.prepare(made, job, print)
    assert records[0].failure == "not installed: a_package_that_nobody_has"
    assert records[1].failure == "has no way to run 'unet' alone"


def test_every_contender_of_the_table_has_a_module_and_can_be_chosen() -> None:
    for contender in contenders.CONTENDERS:
        assert (Path(pool.__file__).parent / f"{contender.module}.py").is_file()
    options = cpu.parse(["--only", "sfumato-float32", "onnxruntime", "--dtype", "float32"])
    assert [c.name for c in cpu.chosen(options)] == ["sfumato-float32", "onnxruntime"]
    with pytest.raises(SystemExit, match="no contender 'torch'"):
        cpu.chosen(cpu.parse(["--skip", "torch"]))
    with pytest.raises(SystemExit, match="No contender is left"):
        cpu.chosen(cpu.parse(["--only", "onnxruntime", "--dtype", "int8"]))


def test_curves_go_over_sizes_batches_and_the_steps_of_pictures() -> None:
    made = cpu.shapes(cpu.parse(["--curves", "--sizes", "64", "512", "--batches", "1", "3"]))
    assert made == [Shape(64), Shape(512), Shape(512, 3)]
    pictures = cpu.shapes(cpu.parse(["--curves", "--what", "image"]))
    assert {shape.steps for shape in pictures} == {1, 2, 4, 8}


def test_outputs_are_compared_with_the_first_ones(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)
    for name, output in (("a", expected), ("b", expected * 1.01), ("c", expected[:1])):
        np.save(tmp_path / f"{name}.npy", output)
    records = [Record(name, "float32") for name in "abcd"]
    cpu.compare(records, tmp_path)
    distances = [record.distance for record in records]
    assert distances == [None, pytest.approx(0.01, rel=1e-3), None, None]


def test_a_worker_that_ends_tells_its_last_words(job: Job, tmp_path: Path) -> None:
    refused = pytest.raises(WorkerFailed, match="There is no contender 'nobody'")
    with Process("nobody", job, tmp_path) as process, refused:
        process.ask(load=[])


@pytest.mark.slow
def test_two_contenders_on_a_tiny_model_agree(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--model": model, "--output": tmp_path, "--cache": tmp_path}
    options |= {"--threads": 1, "--size": 32, "--rounds": 2}
    words = [str(word) for pair in options.items() for word in pair]
    cpu.main([*words, "--only", "sfumato-float32", "diffusers-float32"])
    assert "x sfumato-float32" in capsys.readouterr().out
    written = json.loads((tmp_path / "cpu-unet.json").read_text())
    theirs = written["contenders"]["diffusers-float32"]
    assert theirs["failure"] is None and theirs["distance"] < 1e-5 and theirs["cold"] > 0
    times = written["shapes"][0]["contenders"]["diffusers-float32"]
    assert len(times["seconds"]) == 2 and set(times["ratio_to"]) == {"sfumato-float32"}
    assert (tmp_path / "cpu-unet.png").is_file() == (find_spec("matplotlib") is not None)
