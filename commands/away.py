"""Why a gateway gave no answer, in a sentence that says what to do: one for each thing that can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client import ClientError

HANG_S = 5.0
"""A gateway that is well says that it lives in milliseconds, however much it has to do."""


def why_away(url: str, error: ClientError) -> str:
    """Of the error that ended a call to the gateway at ``url``."""
    import httpx

    from client import UnavailableError

    if isinstance(error, UnavailableError):
        return f"the gateway at {url} is overloaded or not ready: {error}"
    cause = error.__cause__
    if "WRONG_VERSION_NUMBER" in str(cause):
        return f"what listens at {url} speaks http, not https: give {url.replace('https://', 'http://', 1)}"
    if "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return f"the certificate of {url} is not trusted here; SSL_CERT_FILE can name its authority's: {cause}"
    if isinstance(cause, httpx.TimeoutException) and not isinstance(cause, httpx.ConnectTimeout):
        return hangs(url)
    if isinstance(cause, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        other = "; perhaps it speaks https" if url.startswith("http://") else ""
        return f"what listens at {url} broke the connection off{other}: {cause}"
    return f"the gateway at {url} is not there; `tresnet serve` starts one: {cause or error}"


def hangs(url: str) -> str:
    return f"the gateway at {url} is there and takes the question, but gives no answer: it hangs, or is stopped"


def does_hang(url: str, within_s: float) -> bool:
    """Whether what listens there takes a question and answers nothing, so that nobody need wait out a whole attempt."""
    import httpx

    try:
        # Certificates take longer to load than the question takes, and plain HTTP has none.
        httpx.get(f"{url.rstrip('/')}/livez", timeout=max(HANG_S, within_s), verify=url.startswith("https:"))
    except httpx.ReadTimeout:
        return True
    except (httpx.HTTPError, httpx.InvalidURL):  # the question itself will say what is wrong
        return False
    return False
