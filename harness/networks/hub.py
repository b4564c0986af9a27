"""Weights on a model hub, `hub:OWNER/NAME[/FILE][@REVISION]`, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness.errors import UserError, nearest, one_line
from harness.networks import checkpoints

PREFIX = "hub:"
"""What a reference begins with."""

PREFERRED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights in the repositories of the usual libraries; the first that is there is taken."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".th", ".tar", ".ckpt")
"""Endings of files that may hold weights."""

COMMIT = re.compile("[0-9a-f]{40}")
"""A commit; branches and tags may move, it does not."""


@dataclass(frozen=True)
class Reference:
    """A file of weights in a repository."""

    repository: str
    """OWNER/NAME."""
    file: str | None
    """Its path in the repository; None: the one that holds the weights."""
    revision: str | None
    """A branch, a tag or a commit; None: the repository's main branch."""

    def __str__(self) -> str:
        path = f"{self.repository}/{self.file}" if self.file else self.repository
        return PREFIX + path + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether it names one file at one commit, whose content cannot change."""
        return self.file is not None and bool(COMMIT.fullmatch(self.revision or ""))


def parse(text: str) -> Reference:
    """The reference that a `hub:` word names; UserError where it names none."""
    path, at, revision = text.removeprefix(PREFIX).partition("@")
    words = path.split("/")
    file = "/".join(words[2:]) or None
    if len(words) < 2 or (at and not revision) or "" in words or {".", ".."} & {*words, *revision.split("/")}:
        raise UserError(f"{text!r}: expected hub:OWNER/NAME, hub:OWNER/NAME/FILE, or one of them with @REVISION")
    check_name("/".join(words[:2]))
    return Reference("/".join(words[:2]), file, revision or None)


def check_name(repository: str) -> None:
    """Raises UserError unless this is OWNER/NAME as hubs spell it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if repository.count("/") != 1:
            raise HFValidationError("expected OWNER/NAME")
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no repository's name: {one_line(error)}") from None


def pin(reference: Reference) -> Reference:
    """The reference with the file and the commit that it names now, or, without a network, in the cache.

    UserError where there is no such repository, revision or file, or neither a network nor a copy in the cache.
    """
    if reference.pinned:
        return reference
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(reference.repository, revision=reference.revision)
    except Exception as error:  # of several libraries, and of several generations of them
        copy = None if _refused(error) else cached(reference)
        if copy is None:
            raise problem(error, str(reference)) from None
        return copy
    named = _named(reference, [each.rfilename for each in found.siblings or []], str(found.sha))
    path = _download(replace(named, revision=reference.revision))  # by its branch, so that the cache knows what that is
    return replace(named, revision=path.parents[len(PurePosixPath(str(named.file)).parents) - 1].name)


def cached(reference: Reference) -> Reference | None:
    """The pinned reference if the cache knows its revision and has the file, else None; asks no network."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    wanted = reference.revision or "main"
    for repository in repositories:
        if (repository.repo_type, repository.repo_id) != ("model", reference.repository):
            continue
        for revision in repository.revisions:
            names = [each.file_path.relative_to(revision.snapshot_path).as_posix() for each in revision.files]
            if wanted not in (revision.commit_hash, *revision.refs) or reference.file not in (None, *names):
                continue
            return _named(reference, names, revision.commit_hash)
    return None


def fetch(reference: Reference) -> Path:
    """The file of a pinned reference on this machine, with the shards beside it if it is an index.

    What the cache has is not asked for again. UserError where it cannot be had.
    """
    assert reference.pinned and reference.file is not None
    path = _download(reference)
    folder = PurePosixPath(reference.file).parent
    for part in checkpoints.parts(path)[1:]:
        _download(replace(reference, file=str(folder / part.name)))
    return path


def _download(reference: Reference) -> Path:
    """The file of a reference in the cache, which keeps it in a folder named by the commit."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    repository, file, revision = reference.repository, str(reference.file), reference.revision
    try:
        if reference.pinned:
            copy = try_to_load_from_cache(repository, file, revision=revision)
            if isinstance(copy, str):
                return Path(copy)
            HfApi().model_info(repository, revision=revision)  # fails at once where the download would try for long
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # as above
        raise problem(error, str(reference)) from None


def _named(reference: Reference, names: list[str], commit: str) -> Reference:
    """The reference with a commit and with its file, one of `names`."""
    weights = [name for name in names if name.endswith((*SUFFIXES, ".index.json"))]
    if reference.file is None:
        return replace(reference, file=_weights(weights, str(reference)), revision=commit)
    if reference.file not in names:
        raise UserError(f"{reference}: {reference.repository} has no such file{nearest(reference.file, weights)}")
    return replace(reference, revision=commit)


def _weights(names: Iterable[str], text: str) -> str:
    """The one of a repository's files that holds the weights; UserError where it could be several, or none."""
    files = sorted(names)
    if usual := [name for name in PREFERRED if name in files]:
        return usual[0]
    for some in ([name for name in files if name.endswith(".safetensors")], files):
        if len(some) == 1:
            return some[0]
    word, at, revision = text.partition("@")
    options = " or ".join(f"{word}/{name}{at}{revision}" for name in files[:4]) + (" or ..." if len(files) > 4 else "")
    if not files:
        raise UserError(
            f"{text} has no file of weights ({', '.join(SUFFIXES)}): name another repository, or a file of it"
        )
    raise UserError(f"{text} has several files of weights: name one, {options}")


def _refused(error: Exception) -> bool:
    """Whether the hub has answered that it will not, so that the cache is no substitute for its answer."""
    response = getattr(error, "response", None)
    return response is not None and 400 <= response.status_code < 500


def problem(error: Exception, what: str, elsewhere: str | None = None) -> UserError:
    """A line about an error of huggingface_hub: what happened to `what`, and what to do.

    `elsewhere`: what to do without a network.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub_errors

    at = constants.HF_HUB_CACHE
    copy = "" if elsewhere else f" and it is not in the cache {at}"
    elsewhere = elsewhere or f"give a local file, or copy the cache {at} from a machine that has one"
    access = "set HF_TOKEN, or log in with `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        line = f"HF_HUB_OFFLINE is set{copy}: unset it, or {elsewhere}"
    elif isinstance(error, hub_errors.GatedRepoError):
        line = f"access to it has to be asked for on its page at {constants.ENDPOINT}, then {access}"
    elif isinstance(error, hub_errors.RepositoryNotFoundError):
        line = f"{constants.ENDPOINT} has no such repository, or it is private: check the name; {access}"
    elif isinstance(error, hub_errors.RevisionNotFoundError):
        line = "the repository has no such revision: give a branch, a tag or a commit of it"
    elif isinstance(error, hub_errors.EntryNotFoundError) and status == 404:
        line = "the repository has no such file at this revision"
    elif status in (401, 403):
        line = f"{constants.ENDPOINT} does not allow it ({status}): {access}"
    elif status is not None:
        line = f"{constants.ENDPOINT} answered {status}: {one_line(str(error))}"
    elif not isinstance(error, (OSError, getattr(hub_errors, "HTTPError", OSError))):
        line = f"{type(error).__name__}: {one_line(error)}"
    else:
        reason = one_line(error) or type(error).__name__
        line = f"{constants.ENDPOINT} cannot be reached ({reason}): without a network, {elsewhere}"
    return UserError(f"{what}: {line}")
