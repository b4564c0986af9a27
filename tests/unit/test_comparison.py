"""The arithmetic of benchmarks.methods: pairs, intervals, ties, arrivals, and what is not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import methods, pace, samples, tuning
from benchmarks.comparison import by_method, draw, paired, spread, table, told
from benchmarks.methods import Run
from harness import resolve
from harness.config import Config, identity
from harness.errors import UserError
from harness.training.distill import distill
from harness.training.inversion import num_steps
from tune import spaces
from tune.generated import last_checkpoint


def row(method: str, seed: int, score: float, **other: Any) -> dict[str, Any]:
    curve = [[10.0, 0.5], [20.0, score]]
    usual = {"variant": "paper", "agreement": score, "seconds": 20.0, "memory": 100.0, "trials": 0, "curve": curve}
    return {"suite": "digits", "budget": "updates=10", "words": [], "method": method, "seed": seed, "score": score,
            **usual, **other}  # fmt: skip


def test_a_difference_is_of_pairs() -> None:
    """Differences -1, -2, -3: mean -2, deviation 1, and Student's t of 2 degrees of freedom is 4.302653."""
    found = paired({0: 5.0, 1: 9.0, 2: 20.0, 7: 1.0}, {0: 4.0, 1: 7.0, 2: 17.0, 8: 0.0})
    assert found and found.interval
    half = 4.302653 / 3**0.5
    assert found.mean == pytest.approx(-2)
    assert found.interval == pytest.approx((-2 - half, -2 + half), abs=1e-5)
    assert found.tie


def test_a_tie_is_an_interval_that_holds_zero() -> None:
    apart = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.7, 1: 0.6, 2: 0.501})
    assert apart and not apart.tie and told(apart).startswith("-19.97 [-20.11, -19.82]")
    tied = paired({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.85})
    assert tied and tied.tie and told(tied).endswith(", a tie")
    same = paired({0: 0.9, 1: 0.8}, {0: 0.9, 1: 0.8})
    assert same and same.tie
    single = paired({0: 0.9}, {0: 0.8})
    assert single and not single.tie and told(single) == "-10.00 (one seed)"
    assert told(paired({0: 0.9}, {1: 0.8})) == "no seed in common"


def test_spread_is_the_deviation_over_seeds() -> None:
    assert spread([0.5, 0.7]) == "60.00 ± 14.14"
    assert spread([0.5]) == "50.00"


def test_the_table_has_the_best_first_and_a_dash_for_who_never_arrives() -> None:
    rows = [row("slow", seed, 0.6) for seed in (0, 1)] + [row("best", 0, 0.9), row("best", 1, 0.8)]
    rows += [row("late", seed, 0.81, variant="other", memory=None) for seed in (0, 1)]
    lines = table(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [line[0] for line in cells] == ["best", "late (other)", "slow"]
    assert [line[5] for line in cells[:1]] == ["best"] and "a tie" in cells[1][5]
    assert [line[7] for line in cells] == ["-", "20", "-"], "0.95 * 0.85 = 0.8075: one of the best's seeds stays below"
    assert [line[8] for line in cells] == ["100", "-", "100"]
    assert list(by_method(rows)) == ["best", "late (other)", "slow"]


def test_a_figure_is_drawn(tmp_path: Path) -> None:
    draw([row("one", 0, 0.5), row("two", 0, 0.6)], tmp_path / "new" / "figure.png", "title")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_equal_updates_are_rounds_by_the_methods_own_turns() -> None:
    rounds = {name: methods.rounds_of(Run("digits", name, 0, ()), ("updates", 1200), []) for name in methods.DATA_FREE}
    assert rounds == {
        "ddad:hinted": 24,
        "ddad:noisy": 24,
        "ddad:soft": 240,
        "ddad:held": 37,
        "ddad:fresh": 240,
        "ddad:aimed": 240,
        "ddad:swift": 240,
        "ddad": 240,
        "dfad": 240,
        "dafl": 1200,
        "zskt": 120,
        "dfq": 120,
        "deepinversion": 24,
        "cmi": 24,
        "fast": 120,
        "nayer": 24,
    }
    words = ("student_steps=10", "replay.share=0.5")
    assert methods.rounds_of(Run("digits", "ddad", 0, words), ("updates", 1200), []) == 120


def test_equal_time_needs_a_measured_speed() -> None:
    run = Run("digits", "ddad", 3, ())
    with pytest.raises(UserError, match="the speed of ddad on digits is not known: run with --rates first"):
        methods.rounds_of(run, ("seconds", 60), [row("ddad", 0, 0.5), row("dfad", 0, 0.5, budget="rate", speeds=[0.4])])
    rate = row("ddad", 0, 0.5, budget="rate", speeds=[0.4], preparation=4.0)
    assert methods.rounds_of(run, ("seconds", 60), [rate]) == 140


def test_a_curve_begins_after_the_preparation() -> None:
    """10 rounds of 0.4 s after 4 s: points at rounds 5 and 10 are at 6 and 8 s."""
    rate = row("ddad", 0, 0.5, budget="rate", speeds=[0.4], preparation=4.0)
    run = row("ddad", 0, 0.5, rounds=10, curve=[[5, 0.3], [10, 0.5]], wall_seconds=99.0)
    settings = resolve.resolve("digits", None, {})
    found = methods.timed(run, rate, settings)
    assert found["seconds"] == pytest.approx(8.0)
    assert found["curve"] == [[pytest.approx(6.0), 0.3], [pytest.approx(8.0), 0.5]]
    assert methods.timed(run, None, settings)["curve"] == [[pytest.approx(49.5), 0.3], [pytest.approx(99.0), 0.5]]


@pytest.mark.parametrize("method", ["ddad", "deepinversion"])
def test_rounds_fill_the_seconds_at_the_methods_own_speed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 0.1 s, the rest of a round 2 s; of R rounds each has 2000 R / 220 steps: R (2 + 0.909 R) <= 60."""
    settings = resolve.resolve("digits", None, {"method": method})
    asked: list[int] = []

    def speed(settings: Config, rate_rounds: int) -> float:
        asked.append(num_steps(settings))
        return 2.0 + 0.1 * num_steps(settings) if method == "deepinversion" else 2.0

    monkeypatch.setattr(pace, "seconds_a_round", speed)
    speeds = pace.speeds(settings, 5)
    assert len(asked) == len(speeds) and (method == "ddad" or asked == [1, 11])
    assert pace.rounds_in(settings, speeds, 60.0) == (7 if method == "deepinversion" else 30)
    seconds = pace.needed(settings, speeds)
    assert seconds(7) == pytest.approx(7 * (2 + 0.1 * 64) if method == "deepinversion" else 14)


def test_rates_are_measured_once_and_only_where_nothing_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    monkeypatch.setattr(methods, "IDLE", -1.0)
    monkeypatch.setattr(pace, "by_the_wall", lambda: True)
    words = ["teacher.network=cnn8", "teacher.checkpoint=untrained", "student.network=cnn4", "batch_size=8"]
    with pytest.raises(UserError, match="the machine is not idle"):
        methods.measure_rates("digits", ["ddad"], words)
    monkeypatch.setattr(methods, "IDLE", 101.0)
    monkeypatch.setattr(methods, "RATE_ROUNDS", 1)
    for _ in range(2):
        methods.measure_rates("digits", ["ddad", "fast"], words)
    found = methods.read(tmp_path / "digits.jsonl")
    assert [(row["method"], len(row["speeds"])) for row in found] == [("ddad", 1), ("fast", 2)]
    assert all(seconds > 0 for row in found for seconds in row["speeds"])
    assert [row["preparation"] for row in found] == [0.0, 0.0]
    assert methods.known(Run("digits", "fast", 3, tuple(words)), found) == found[1]
    assert methods.known(Run("digits", "fast", 3, ()), found) is None
    assert capsys.readouterr().out.count("s a round") == 2


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    same = identity(Run("digits", "ddad", 0, ()).config(2))
    finished = row("ddad", 0, 0.5, rounds=2, wall_seconds=3.0, identity=same)
    methods.add(tmp_path / "digits.jsonl", finished)

    def start(*words: Any, **options: Any) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(methods.subprocess, "Popen", start)
    found = methods.compare("digits", [Run("digits", "ddad", 0, ())], ("updates", 10))
    assert "| ddad | 0 | 0 | 50.00 | 50.00 | best | 3 |" in found
    assert methods.read(tmp_path / "digits.jsonl") == [finished]
    others = [
        Run("digits", "ddad", 1, ()),
        Run("digits", "ddad:swift", 0, ()),
        Run("digits", "ddad", 0, ("classes=9",)),
    ]
    for other in others:
        with pytest.raises(AssertionError, match="a run was started"):
            methods.compare("digits", [other], ("updates", 10))


def test_tuned_settings_and_their_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant that tuning made has its trials always; a published method only with what they found."""
    found = "dfad: {trials: 60, values: {student.lr: 0.02, student.schedule: cosine}}"
    (tmp_path / "digits.yaml").write_text(f"ddad:swift: {{trials: 60, values: {{}}}}\n{found}\n")
    monkeypatch.setattr(methods, "TUNED", tmp_path)
    published, tuned = (Run("digits", "dfad", 0, (), tuned) for tuned in (False, True))
    assert (published.trials(), published.config(4).student.lr) == (0, 0.1)
    assert (tuned.trials(), tuned.config(4).student.lr, tuned.config(4).student.schedule) == (60, 0.02, "cosine")
    assert [Run("digits", "ddad:swift", 0, (), tuned).trials() for tuned in (False, True)] == [60, 60]
    assert Run("digits", "ddad", 0, (), True).trials() == 0
    assert Run("fashion", "dfad", 0, (), True).trials() == 0  # what was found is of the suite's own teacher


def test_words_may_follow_an_option_that_takes_several() -> None:
    given = methods.parse(["digits", "--methods", "ddad", "dfad", "student.lr=0.2", "--seeds", "0", "1", "classes=10"])
    assert (given.methods, given.seeds, given.words) == (["ddad", "dfad"], [0, 1], ["student.lr=0.2", "classes=10"])


@pytest.mark.parametrize("suite", methods.SUITES)
def test_every_suite_resolves(suite: str) -> None:
    for name in methods.DATA_FREE:
        assert Run(suite, name, 0, ()).steps() >= 1


def test_what_tuning_found_is_written_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"objective": 0.8, "sample": {"student.lr": 0.0123456, "discrepancy": "kl", "generator.width": 8}}
    kept, none = ({"best": best, "default": {"agreement": agreement}} for agreement in (0.7, 0.8))
    for module in (methods, tuning):
        monkeypatch.setattr(module, "TUNED", tmp_path)
    (tmp_path / "digits.yaml").write_text("ddad:swift: {trials: 60, values: {}}\ndfq: {trials: 3, values: {}}\n")
    tuning.write("digits", {"dfad": tuning.found(kept)})
    tuning.write("digits", {"dfq": tuning.found(none)})
    assert methods.tuning("digits") == {
        "ddad:swift": {"trials": 60, "values": {}},
        "dfad": {"trials": 60, "values": {"student.lr": 0.0123, "discrepancy": "kl", "generator.width": 8}},
        "dfq": {"trials": 60, "values": {}},
    }
    assert Run("digits", "dfad", 0, (), True).config(4).generator.width == 8


def test_what_tuning_found_has_to_hold_for_other_seeds() -> None:
    """The best of many trials is the best by chance too: where both were repeated, their means decide."""
    best = {"objective": 0.8, "sample": {"student.lr": 0.02}}
    for mean, values in [(0.75, {"student.lr": 0.02}), (0.65, {}), (None, {})]:
        repetitions = {"best": {"objective": {"mean": mean}}, "default": {"objective": {"mean": 0.7}}}
        report = {"best": best, "default": {"objective": 0.7, "agreement": 0.7}, "repetitions": repetitions}
        assert tuning.found(report) == values


@pytest.mark.parametrize("method", tuning.BASELINES)
def test_every_baseline_has_a_space_that_fits_it(method: str) -> None:
    space = spaces.find(str(Path(tuning.__file__).with_name("spaces") / f"{method}.yaml"))
    spaces.check(space, resolve.resolve("digits", None, {"method": method}))
    assert len(space) >= 5


@pytest.mark.parametrize(
    ("variant", "start"),
    [("swift", "paper"), ("aimed", "swift"), ("soft", "soft"), ("noisy", "noisy"), ("hinted", "hinted")],
)
def test_the_spaces_of_our_variants_fit_what_they_start_from(variant: str, start: str) -> None:
    space = spaces.find(str(Path(tuning.__file__).with_name("spaces") / f"{variant}.yaml"))
    spaces.check(space, resolve.resolve("digits", None, {"variant": start}))


def test_samples_are_of_the_last_generator_or_pool(tmp_path: Path) -> None:
    runs = {}
    for method in ("ddad", "deepinversion"):
        small = {"rounds": 2, "batch_size": 8, "student_steps": 1, "pictures": False, "tracking": {"uri": "none"}}
        networks = {"teacher": {"network": "cnn8", "checkpoint": "untrained"}, "student": {"network": "cnn4"}}
        config = resolve.resolve("digits", None, {"method": method, **small, **networks, "data": {"name": "none"}})
        distill(config, tmp_path / method)
        runs[method] = (config, tmp_path / method)
        checkpoint = last_checkpoint(tmp_path / method)
        assert checkpoint
        row = samples.sample(config, checkpoint)
        assert row.shape == (9, 16 * 9, 3) and row.min() >= 0 and row.max() <= 1 and row[:, :8].std() > 0
    samples.draw(runs | {"gone": (config, tmp_path / "gone")}, tmp_path / "samples.png", "title")
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 1000
