"""Requests to an object storage service, with its errors turned into knnstore's.

Credentials are those of the service's own tools, from the environment or, for S3, a profile. They stay in obstore:
nothing here keeps, prints or logs them.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from knnstore.errors import KnnstoreError, ResourceError, UsageError
from knnstore.files.protocol import ConditionError, Description, Version
from knnstore.files.sums import sums_from

_EXTRA = "pip install 'knnstore[cloud]'"
_STALLED = timedelta(seconds=30)  # without receiving a byte
_TIMEOUT = timedelta(minutes=10)  # per request, including the body
_RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_BODY_ATTEMPTS = 4  # after an answer was interrupted
_SERVICE = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[!-~]*)?")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

Result = TypeVar("Result")


class UnchangedError(Exception):
    """The object hasn't changed since the version given in the request."""


@dataclass(slots=True)
class Traffic:
    """Requests of this process by kind, and bytes of objects read and written."""

    gets: int = 0
    heads: int = 0
    puts: int = 0
    lists: int = 0
    deletes: int = 0
    read: int = 0
    written: int = 0

    @property
    def requests(self) -> int:
        """Return the number of requests, not counting retries."""
        return self.gets + self.heads + self.puts + self.lists + self.deletes


traffic = Traffic()
_counting = Lock()


def count(**more: int) -> None:
    """Add to the traffic of this process."""
    with _counting:
        for name, number in more.items():
            setattr(traffic, name, getattr(traffic, name) + number)


def forget_traffic() -> None:
    """Reset the counts to zero."""
    with _counting:
        for field in fields(Traffic):
            setattr(traffic, field.name, 0)


def load_obstore() -> Any:
    """Import obstore. Raises UsageError if it isn't installed."""
    try:
        import obstore  # noqa: PLC0415 - an extra that local stores don't need
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"stores in object storage need obstore: {_EXTRA}") from error
    return obstore


@lru_cache(maxsize=64)
def bucket_of(root: str) -> Any:
    """Return the client of a bucket given as ``s3://bucket``."""
    obstore = load_obstore()
    scheme = root.partition(":")[0]
    client: dict[str, Any] = {"timeout": _TIMEOUT, "read_timeout": _STALLED}
    options: dict[str, Any] = {}
    if scheme == "s3":
        if endpoint := _endpoint():
            options["endpoint"] = endpoint
            client["allow_http"] = endpoint.startswith("http://")
        if profile := _profile():
            options["credential_provider"] = profile
    try:
        return obstore.store.from_url(root, client_options=client, retry_config=_RETRY, **options)
    except (ValueError, obstore.exceptions.BaseError) as error:
        raise UsageError(
            f"{root} can't be used: {reason(error)}; credentials are taken from {_CREDENTIALS[scheme]}"
        ) from error


def client_of(path: Path) -> Any:
    """Return the client of the bucket of a path."""
    return bucket_of(f"{path.parts[0]}//{path.parts[1]}")


def _profile() -> Any:
    """Return credentials of an AWS profile, if there is one and the environment has no keys."""
    chosen = os.environ.get("AWS_PROFILE")
    if os.environ.get("AWS_ACCESS_KEY_ID") or not (chosen or _has_profiles()):
        return None
    try:
        from boto3 import Session  # noqa: PLC0415 - an extra
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ImportError as error:
        if chosen is None:
            return None
        raise UsageError(f"AWS_PROFILE={chosen} needs boto3 to read profiles: {_EXTRA}") from error
    try:
        session = Session()
        return Boto3CredentialProvider(session) if chosen or session.get_credentials() else None
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"the AWS profile {chosen or 'default'} can't be used: {error}") from error


def _has_profiles() -> bool:
    """Return whether a file of AWS profiles exists."""
    named = {"credentials": "AWS_SHARED_CREDENTIALS_FILE", "config": "AWS_CONFIG_FILE"}
    files = [Path(os.environ[variable]) for variable in named.values() if os.environ.get(variable)]
    with suppress(RuntimeError):  # there is no home folder
        files += [Path.home() / ".aws" / name for name, variable in named.items() if not os.environ.get(variable)]
    return any(file.is_file() for file in files)


def _endpoint() -> str | None:
    """Return the URL of an S3-compatible service from the environment. Raises UsageError for an invalid one."""
    name = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None)
    if name is None:
        return None
    endpoint = os.environ[name]
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        good = good and bool(_SERVICE.fullmatch(endpoint))
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"${name} isn't the URL of a service: give https://HOST or http://HOST:PORT, without credentials"
        )
    return endpoint


@contextmanager
def service_errors(action: str, url: str) -> Iterator[None]:
    """Turn errors of obstore raised within into knnstore's, with the URL, the cause and the next step.

    A missing object stays a FileNotFoundError; ConditionError and UnchangedError are handled by the caller.
    """
    exceptions = load_obstore().exceptions
    try:
        yield
    except KnnstoreError:
        raise
    except exceptions.NotModifiedError as error:
        raise UnchangedError(url) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise ConditionError(url) from error
    except FileNotFoundError as error:
        if action != "write":
            raise FileNotFoundError(f"{url} doesn't exist") from error
        raise ResourceError(f"can't {action} {url}: {reason(error)}. {_next_step(error, url)}") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise ResourceError(
            f"can't {action} {url}: the service refuses it ({reason(error)}): check that the credentials "
            f"({_CREDENTIALS[url.partition(':')[0]]}) are right and have permission"
        ) from error
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise ResourceError(f"can't {action} {url}: {reason(error)}. {_next_step(error, url)}") from error


def request(action: str, url: str, work: Callable[[], Result]) -> Result:
    """Return ``work()``, retried if its answer is interrupted; raises the errors of ``service_errors``."""
    attempt = 1
    while True:
        try:
            with service_errors(action, url):
                return work()
        except FileNotFoundError:
            raise
        except ResourceError as error:
            if attempt == _BODY_ATTEMPTS or not _broke_off(error.__cause__):
                raise
        time.sleep(0.1 * 2**attempt)
        attempt += 1


def described(answer: Any) -> Description:
    """Return the description of an object in an answer of obstore."""
    meta = answer.meta
    sums = sums_from(answer.attributes, meta["size"])
    return Description(meta["size"], meta["last_modified"].timestamp(), Version(meta["e_tag"], meta["version"]), sums)


def reason(error: BaseException) -> str:
    """Summarise a service's error: status and code, or the first line without URL queries."""
    text = str(error)
    codes = [
        match[1] for match in (re.search(p, text) for p in (r"status code: (\d+)", r"<Code>(\w+)</Code>")) if match
    ]
    if codes:
        return "it answered " + " ".join(codes)
    if "169.254" in text or "redential" in text:
        return "there are no credentials"
    line = text.partition("\n")[0]
    return re.sub(r"\?\S+", "", line.rpartition(" - ")[2] or line)[:160].strip(" .:")


def _broke_off(error: BaseException | None) -> bool:
    text = str(error)
    return "status code" not in text and "redential" not in text


def _next_step(error: BaseException, url: str) -> str:
    text = str(error)
    scheme, _, rest = url.partition("://")
    if "NoSuchBucket" in text:
        return f"Create the bucket {scheme}://{rest.partition('/')[0]} first"
    if reason(error) == "there are no credentials":
        return f"Set {_CREDENTIALS[scheme]}"
    return "Run the same command again; finished work is kept"
