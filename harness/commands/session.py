"""A command at work: the signals that stop it, what it prints and on which stream, and its exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from harness.errors import Diverged, Lost, UserError, memory_wanted

if TYPE_CHECKING:
    from harness.training.distill import Report

LOG = logging.getLogger("ddad")
"""Its level is that of the command: DEBUG with -v, ERROR with -q."""

NOISY = ("matplotlib", "PIL", "fsspec", "git")
"""Libraries that log every file and font."""

SECONDS_TO_REPORT = 60.0
"""Seconds that rank 0 has to report an error before another rank does, one after the other."""


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """What the command says beside its result; UserError for both at once."""
    if verbose and quiet:
        raise UserError("-v and -q: give one of them")
    LOG.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.DEBUG)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.INFO)
        LOG.debug("ddad %s", " ".join(sys.argv[1:]))


def verbosity() -> list[str]:
    """The options that give another process this one's."""
    return {logging.DEBUG: ["-v"], logging.ERROR: ["-q"]}.get(LOG.level, [])


class Signals:
    """Turns the first SIGINT or SIGTERM into a reason to stop within seconds; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.received is not None:
            sys.exit(128 + number)
        self.received = number

    def reason(self) -> str | None:
        """Why the run should stop, or None."""
        return signal.Signals(self.received).name if self.received else None


def follow(reports: Iterable[Report]) -> Report | None:
    """Shows the reports as they come, to the end; waits for the other processes; returns the last report."""
    from harness.commands.progress import follow as shown
    from harness.distributed.runtime import leave

    last = shown(reports) if rank() == 0 and LOG.level != logging.ERROR else next(iter(deque(reports, maxlen=1)), None)
    leave()
    return last


def rank() -> int:
    """The index of this process among those a launcher started; rank 0 prints."""
    return int(os.environ.get("RANK", "0"))


def conclude(report: Report | None) -> None:
    """Prints how a run ended; raises typer.Exit with 128 + N where signal N stopped it, on this process or another."""
    assert report is not None
    if report.stopped:
        tell(
            f"stopped after round {report.round} of {report.rounds} ({report.stopped}): "
            "the same command goes on from there"
        )
        names = signal.Signals.__members__
        raise typer.Exit(128 + names[report.stopped] if report.stopped in names else 0)
    if rank() > 0:
        return
    from harness.commands.progress import conclusion

    conclusion(report)


def say(line: str) -> None:
    """Prints a line about the command on standard error, unless it is quiet."""
    if rank() == 0 and LOG.level != logging.ERROR:
        print(line, file=sys.stderr, flush=True)


def report_error(line: str) -> None:
    """Prints an error. Of several processes rank 0 does, and the launcher ends the others; if it does not, they do."""
    if rank() > 0:
        time.sleep(SECONDS_TO_REPORT * (1 + int(os.environ.get("LOCAL_RANK", "0")) / 10))
        line = f"rank {rank()}: {line}"
    _report_at_once(line)


def _report_at_once(line: str) -> None:
    print(f"ddad: {line}", file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """Prints a line of the command's result on standard output."""
    if rank() == 0:
        print(line, flush=True)


def show(found: dict[str, Any], as_json: bool, lines: Callable[[dict[str, Any]], Iterable[str]]) -> None:
    """Prints a result as one JSON object, or as lines."""
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(lines(found)))


def _check_packages() -> None:
    """`tasks` and `tune` are also names of unrelated packages on PyPI: make sure that ours are the ones imported."""
    import importlib.util

    ours = Path(__file__).resolve().parents[2]
    for name in ("tasks", "tune"):
        spec = importlib.util.find_spec(name)
        parents = [Path(folder).resolve().parent for folder in (spec.submodule_search_locations or [])] if spec else []
        if spec and ours not in parents:
            raise UserError(
                f"the package {name!r} that Python finds is not ddad's but {spec.origin}: uninstall that one, "
                "or install ddad in an environment of its own"
            )


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process at once, where there is no run to save: an exception raised during imports may be swallowed."""
    os._exit(128 + number)


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits; a mistake is one line on standard error and exit code 2, never a traceback."""
    before = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_packages()
        code = command()
    except (UserError, Diverged) as error:
        LOG.debug("refused", exc_info=error)
        report_error(str(error))
        code = error.exit_code
    except Lost as error:
        if rank() <= 1:  # rank 0 may be the one that was lost
            _report_at_once(str(error))
        code = error.exit_code
    except Exception as error:
        if (wanted := memory_wanted(error)) is not None:
            LOG.debug("refused", exc_info=error)
            _report_at_once(
                f"not enough memory{wanted and f' for {wanted} more'}: a smaller batch_size, micro_batches=N (a batch "
                "in N parts) or a smaller input.size needs less; a run's last checkpoint is kept"
            )
        elif hasattr(error, "format_message"):  # a usage error of typer's own command parser
            report_error(error.format_message())
        else:
            raise
        code = 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written, and the others are waited for. A library's thread that meets the interpreter's end may abort
        # the process, which a launcher takes for a failure of the run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code or 0)
