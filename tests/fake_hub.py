"""A model hub on loopback: repositories with commits, downloads, and commits that it takes, each request noted."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_" + "t" * 34
"""The token that may write."""


@dataclass
class Repository:
    """Commits by name, newest last, each its files; `main` names one."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""

    def add(self, files: dict[str, bytes]) -> str:
        """A commit on main with all the files; its name."""
        name = hashlib.sha1(repr((self.main, sorted(files.items()))).encode()).hexdigest()
        self.commits[name], self.main = files, name
        return name


class Hub(ThreadingHTTPServer):
    """The server, its repositories, and what was asked of it as (method, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.fails: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        return self.repositories.setdefault(name, Repository(private)).add(files)

    def downloads(self) -> list[str]:
        """The paths of files whose content was asked for."""
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    """What of the hub's protocol huggingface_hub uses here."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = self._noted()
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            if (found := self._commit(f"{owner}/{name}", rest[1] if rest else "main")) is not None:
                commit, files = found
                siblings = [{"rfilename": file} for file in files]
                self._json(
                    {
                        "id": f"{owner}/{name}",
                        "sha": commit,
                        "siblings": siblings,
                        "private": self.server.repositories[f"{owner}/{name}"].private,
                    }
                )
            return
        self._file(path)

    def do_HEAD(self) -> None:
        self._file(self._noted())

    def do_POST(self) -> None:
        path = self._noted()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (status := self.server.fails.get(path)) is not None:
            return self._error(status, "Refused")
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "RepoNotFound")
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                return self._json({"error": "it is there", "url": f"{self.server.url}/{name}"}, 409)
            self.server.add(name, {}, asked.get("visibility") == "private" or asked.get("private", False))
            return self._json({"url": f"{self.server.url}/{name}"})
        _, _, _, owner, name, action, _ = path.split("/")
        repository = self.server.repositories[f"{owner}/{name}"]
        if action == "preupload":
            asked = json.loads(body)["files"]
            answer = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]
            return self._json({"files": answer})
        lines = [json.loads(line) for line in body.splitlines()]
        added = [line["value"] for line in lines if line["key"] == "file"]
        files = dict(repository.commits[repository.main])
        files.update({each["path"]: base64.b64decode(each["content"]) for each in added})
        commit = repository.add(files)
        return self._json({"commitUrl": f"{self.server.url}/{owner}/{name}/commit/{commit}", "commitOid": commit})

    def _noted(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        return path

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._error(401 if repository is None else 404, "RepoNotFound")
            return None
        commit = repository.main if revision == "main" else revision
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _file(self, path: str) -> None:
        if "/resolve/" not in path:
            self._error(404, "NotFound")
            return
        owner, name, _, revision, file = path.removeprefix("/").split("/", 4)
        if (found := self._commit(f"{owner}/{name}", revision)) is None:
            return
        commit, files = found
        if file not in files:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = files[file]
        self.send_response(200)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": code}).encode()
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers inside the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def environment(url: str, cache: Path) -> dict[str, str]:
    """What points a process of its own to a hub, with a cache of its own and no token."""
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


def point(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Points huggingface_hub in this process there: it reads its variables once, when it is imported."""
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        patch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
