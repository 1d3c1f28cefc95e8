"""Running the gateway: uvicorn in this process, the bundled Triton beside it unless another is named."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType

import uvicorn

from app.api import State, create_app
from app.bundled_triton import BundledTriton, default_home
from app.settings import Settings
from tresnet.errors import UserError


class _DrainingServer(uvicorn.Server):
    """Tells the application that it drains as soon as the stop is asked for."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.draining = True
        logging.getLogger(__name__).info("%s: finishing the requests in flight", signal.Signals(sig).name)
        super().handle_exit(sig, frame)


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; answer what is in flight; leave no process behind.

    Raises:
        UserError: if the bundled Triton cannot be started, or the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    bundled: BundledTriton | None = None
    if settings.triton_url is None:
        home = Path(settings.triton_home) if settings.triton_home else default_home()
        bundled = BundledTriton(Path(settings.repository), home, Path(settings.log_dir))
        bundled.start()
        settings = settings.model_copy(update={"triton_url": bundled.url})
    try:
        state = State()
        config = uvicorn.Config(
            create_app(settings, state),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.drain_timeout_s),
        )
        server = _DrainingServer(config, state)
        try:
            server.run()
        except SystemExit as error:  # uvicorn exits so when it cannot listen; it has logged why
            raise UserError(f"the gateway could not start on {settings.host}:{settings.port}") from error
        except KeyboardInterrupt:  # uvicorn raises the signal again once it has stopped
            pass
    finally:
        if bundled is not None:
            bundled.stop()
