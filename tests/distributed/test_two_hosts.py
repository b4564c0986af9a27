"""Two hosts, each a network namespace with an address of its own, do the run that two processes of one host do.

What they share is the file system, as machines of a cluster do; their sockets meet over a veth pair alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.starting import HELD, TINY, distance, result, run, saved, started, until, workers
from tests.helpers import DDAD, ROOT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2"),
]


@dataclass(frozen=True)
class Host:
    name: str
    interface: str
    address: str


def ip(*words: str) -> None:
    """`ip WORDS`, which has to succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts joined by a wire; they go with the test."""
    pid = os.getpid()
    pair = [Host(f"ddad{pid}-{k}", f"dd{pid}-{k}", f"10.77.0.{k + 1}") for k in range(2)]
    with ExitStack() as stack:
        for host in pair:
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "delete", host.name)
        ip("link", "add", pair[0].interface, "netns", pair[0].name, "type", "veth",
           "peer", pair[1].interface, "netns", pair[1].name)  # fmt: skip
        for host in pair:
            ip("-netns", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            ip("-netns", host.name, "link", "set", host.interface, "up")
            ip("-netns", host.name, "link", "set", "lo", "up")
        yield pair


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes on one host."""
    folder = tmp_path_factory.mktemp("one_host") / "run"
    done = run([*DDAD, "launch", "--nproc", "2", *TINY, "--output", folder], folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def start(
    stack: ExitStack, hosts: Sequence[Host], commands: Sequence[Sequence[object]], cwd: Path, extra: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    """A command on each host at the same time; they end with the stack."""
    parts = []
    for host, command in zip(hosts, commands, strict=True):
        own = {**extra, "GLOO_SOCKET_IFNAME": host.interface, "ADDRESS": host.address}
        parts.append(stack.enter_context(started(["ip", "netns", "exec", host.name, *command], cwd, own)))
    return parts


def run_on(hosts: Sequence[Host], commands: Sequence[Sequence[object]], cwd: Path, extra: Mapping[str, str]) -> None:
    """A command on each host at the same time, to their ends; both have to go well."""
    with ExitStack() as stack:
        parts = start(stack, hosts, commands, cwd, extra)
        said = [part.communicate() for part in parts]
    assert [part.returncode for part in parts] == [0, 0], said


def assert_same(folder: Path, one_host: Path) -> None:
    assert result(folder)["world_size"] == 2
    (first, *_) = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(first)[f"system/node{k}/system_memory_usage_megabytes"] > 0 for k in range(2)), (
        "both hosts are logged"
    )
    assert (folder / "student.safetensors").read_bytes() == (one_host / "student.safetensors").read_bytes()


def test_hosts_reach_each_other_by_the_wire_alone(hosts: list[Host]) -> None:
    first, second = hosts
    for address, reached in ((second.address, True), ("10.77.0.9", False)):
        call = f"import socket; socket.create_connection(('{address}', 9), timeout=3)"
        words = ["ip", "netns", "exec", first.name, "python3", "-c", call]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert ("ConnectionRefusedError" in done.stderr) == reached, done.stderr


def test_accelerate_launch_on_two_hosts(hosts: list[Host], one_host: Path, tmp_path: Path) -> None:
    file = ROOT / "launch/accelerate/many-machines.yaml"
    words = ["--module", "harness", "distill", *TINY, "distributed.world_size=2", "--output", tmp_path / "run"]
    commands = [["accelerate", "launch", "--config_file", file, "--machine_rank", k, *words] for k in range(2)]
    run_on(hosts, commands, tmp_path, {})
    assert_same(tmp_path / "run", one_host)


def test_torchrun_on_two_hosts(hosts: list[Host], one_host: Path, tmp_path: Path) -> None:
    words = [ROOT / "launch/torchrun.sh", *TINY, "--output", tmp_path / "run"]
    commands = [["env", f"NODE={k}", *words] for k in range(2)]
    run_on(hosts, commands, tmp_path, {"NODES": "2", "NPROC": "1", "HEAD": f"{hosts[0].address}:29500"})
    assert_same(tmp_path / "run", one_host)


def test_host_lost_for_good_leaves_the_run_to_the_other(hosts: list[Host], one_host: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    commands = [["env", f"NODE={k}", ROOT / "launch/torchrun.sh", *HELD, "--output", folder] for k in range(2)]
    given = {"NODES": "2", "MIN_NODES": "1", "NPROC": "1", "HEAD": f"{hosts[0].address}:29500", "LAST_CALL": "25"}
    (tmp_path / "hold").touch()
    with ExitStack() as stack:
        survivor, lost = start(stack, hosts, commands, tmp_path, given)
        until(survivor, lambda: bool(saved(folder)))
        (worker,) = workers(lost.pid).values()
        lost.kill()  # torchrun itself: `ip netns exec` and `env` have become it
        worker.kill()
        (tmp_path / "hold").unlink()
        out, err = survivor.communicate()
    assert survivor.returncode == 0, (out, err)
    assert "no answer from rank 1" in err
    assert result(folder)["world_size"] == 1
    assert 0 < distance(folder, one_host) < 1e-8
