"""`ddad doctor`: says what works on this machine. It tries everything."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import torch

from harness import tracking

PACKAGES = ("torch", "torchvision", "accelerate", "deepspeed", "timm", "segmentation-models-pytorch", "mlflow", "ray")


def examine() -> dict[str, str]:
    """{name of a part: one sentence on whether it works}."""
    checks: dict[str, Callable[[], str]] = {
        "python": platform.python_version,
        "packages": _packages,
        "devices": _devices,
        "gloo": lambda: _process_group("gloo"),
        "nccl": _nccl,
        "deepspeed": _deepspeed,
        "mlflow": lambda: tracking.describe("sqlite:///mlflow.db"),
    }
    return {name: _try(check) for name, check in checks.items()}


def _try(check: Callable[[], str]) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # imports that print would spoil --json
            return check()
    except Exception as error:  # to report any failure is the purpose of this command
        return f"does not work: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return ", ".join(found)


def _devices() -> str:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cpu = f"CPU with {torch.get_num_threads()} threads"
    return f"{cpu}, " + (", ".join(gpus) if gpus else "no GPU")


def _process_group(backend: str) -> str:
    """One process sums a number with itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(
        backend, init_method=address, rank=0, world_size=1, timeout=timedelta(seconds=30)
    )
    try:
        value = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        torch.distributed.all_reduce(value)
        return "works" if value.item() == 1 else f"gives a wrong sum, {value.item()}"
    finally:
        torch.distributed.destroy_process_group()


def _nccl() -> str:
    if not torch.cuda.is_available():
        return "not tried: it needs a GPU"
    return _process_group("nccl")


def _deepspeed() -> str:
    """Imports it in a process of its own: it writes to both outputs and compiles missing parts."""
    program = "import deepspeed, transformers; print(deepspeed.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"does not work: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
    return f"imports, {done.stdout.split()[-1]}; distributed.strategy=deepspeed uses it, its kernels are compiled then"
