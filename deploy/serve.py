"""``make serve``: the gateway in the foreground, and once its models are ready, how to ask them.

The gateway's own settings come from the environment, and ``PORT`` before ``TRESNET_PORT``. This process becomes
``tresnet serve``, so signals and the exit status are the gateway's own; what tells how to ask is a process that ends
when it has.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from app.port import check_port
from app.settings import Settings, load_settings
from tresnet.errors import UserError

_BIN = Path(sys.executable).parent
_DEMOS = {"digits": ("classify", "examples/digit-7.png"), "multidigits": ("tag", "examples/digits-2-5-7.png")}
_PICTURE = "examples/digit-7.png"
"""For models of whoever made them: it is there."""
_LONG_S = 120
_OWN = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where this machine reaches what listens on all its addresses of one kind."""


def main() -> None:
    """Does not return, unless it is only to ``check`` whether it could serve."""
    try:
        settings = load_settings(port=os.environ.get("PORT") or None)
        check_port(settings, f"PORT={int(settings.port) + 1} make serve")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if sys.argv[1:] == ["check"]:  # before three minutes of training
        return
    demos = [name for name in _DEMOS if (Path(settings.repository) / name).is_dir()]
    os.environ.setdefault("TRESNET_DEFAULT_MODELS", ",".join(demos))
    gateway = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:  # a grandchild, so that the gateway need not collect it
            with suppress(KeyboardInterrupt, ProcessLookupError):
                _announce(settings, gateway)
        os._exit(0)
    os.wait()
    os.execv(_BIN / "tresnet", ["tresnet", "serve", "--port", str(settings.port)])  # noqa: S606


def _announce(settings: Settings, gateway: int) -> None:
    """Wait as long as the gateway lives; raises ProcessLookupError when it does not."""
    scheme = "https" if settings.tls_certificate else "http"
    host = _OWN.get(settings.host, settings.host)
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"
    with httpx.Client(base_url=url, verify=False, timeout=5) as http:  # noqa: S501 - asks only whether it is ready
        began, told = time.monotonic(), False
        while not _is_ready(http):
            os.kill(gateway, 0)
            if not told and time.monotonic() - began > _LONG_S:
                told = True
                print(f"Not ready after {_LONG_S} s: {url}/readyz and logs/triton.log say why.", flush=True)
            time.sleep(0.2)
        names = http.get("/readyz").json()["models"]
        # With API keys set it does not say; then the demo models alone are known.
        served = http.get("/models").json().get("models", [])
    tasks = {model["name"]: model["task"] for model in served}
    print(_message(settings, url, names, tasks), flush=True)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _message(settings: Settings, url: str, names: list[str], tasks: dict[str, str]) -> str:
    key = ' -H "X-API-Key: $TRESNET_API_KEY"' if settings.api_keys_file else ""
    lines = ["", f"Ready: {url} in a browser, {url}/docs for the API. From another terminal:", ""]
    examples = {name: example for name, example in _DEMOS.items() if name in names}
    if not examples:
        examples = {name: (tasks[name], _PICTURE) for name in names[:1] if name in tasks}
    for name, (task, picture) in examples.items():
        lines.append(f"  curl{key} --data-binary @{picture} '{url}/{task}?model={name}'")
    if examples:
        name, (task, picture) = next(iter(examples.items()))
        where = "" if url == "http://127.0.0.1:8080" else f" --url {url}"
        lines.append(f"  {_shown(_BIN / 'tresnet')} {task} {picture} --model {name}{where}")
    if others := sorted(set(names) - set(examples)):
        lines += ["", f"Other models: {', '.join(others)}."]
    return "\n".join([*lines, "", "Ctrl-C stops.", ""])


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    main()
