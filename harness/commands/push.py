"""`ddad export --hub`: an export folder into a repository of a model hub, in a single commit."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from harness.networks import hub


def check(repository: str) -> None:
    """Raises UserError where the name is none, or there is no token: before anything is exported."""
    from huggingface_hub import get_token

    hub.check_name(repository)
    if get_token() is None:
        raise UserError(f"--hub {repository}: there is no token: set HF_TOKEN, or log in with `hf auth login`")


def check_options(repository: str | None, public: bool, output: Path | None) -> None:
    """Raises UserError for options of `ddad export` that contradict each other, or as `check`."""
    if repository is None:
        if public:
            raise UserError("--public goes with --hub")
        return
    if output is not None:
        raise UserError("--hub uploads the run's own export folder: leave --output out")
    check(repository)


def push(folder: Path | None, repository: str, public: bool) -> str:
    """Uploads the files of a folder and returns the commit's URL; a new repository is private unless `public`.

    `folder` is None where `card.write` had no result to describe, which is refused. All files come in one commit or
    none does. Raises UserError where the hub cannot be reached or refuses, and where the repository is public already
    without `public`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check(repository)
    if folder is None:
        raise UserError(f"--hub {repository}: the run has no result.json to describe: run `ddad distill` again")
    added = [
        CommitOperationAdd(path.name, str(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        shown = api.model_info(repository).private is False
        if not shown or public:
            return str(api.create_commit(repository, added, commit_message="Student exported by ddad").commit_url)
    except Exception as error:  # of several libraries, and of several generations of them
        what = f"--hub {repository}: {folder} was not uploaded"
        raise hub.problem(error, what, f"upload {folder} later, on a machine that has one") from None
    raise UserError(f"--hub {repository}: it is public already: give --public, or another name")
