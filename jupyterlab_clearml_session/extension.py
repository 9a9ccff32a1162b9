"""The server extension: all configuration, and the only place where the parts are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp
from traitlets import Unicode, default

from .api import events
from .api.handlers import handlers as api_handlers
from .backend.client import ClearMLClient
from .forwards import ForwardManager
from .kernels.manager import SessionKernelManager
from .presets import PresetManager
from .proxy import apart, strict
from .proxy import handlers as proxy
from .sessions import ClearMLSessionManager

if TYPE_CHECKING:
    from .local import LocalMode


class ClearMLSessionExtension(ExtensionApp):
    """Remote ClearML machines inside JupyterLab.

    Starting it reads no network and imports neither `clearml` nor an SSH library; that happens when the first
    client asks, or when there is a session to attach to again.
    """

    name = "jupyterlab_clearml_session"
    extension_url = "/clearml-session"
    load_other_extensions = True

    presets_dir = Unicode(help="Folder of the presets.").tag(config=True)
    state_dir = Unicode(
        help="Folder of the note which sessions were attached, and of the embedded default's files."
    ).tag(config=True)

    @default("presets_dir")
    def _default_presets_dir(self) -> str:
        return str(Path(jupyter_config_dir()) / "clearml_session")

    @default("state_dir")
    def _default_state_dir(self) -> str:
        return str(Path(jupyter_data_dir()) / "clearml_session")

    classes = [ClearMLClient, ClearMLSessionManager]

    client: ClearMLClient
    manager: ClearMLSessionManager
    kernels: SessionKernelManager
    _local: LocalMode | None = None
    _unpublish: Callable[[], None] | None = None

    def initialize_settings(self) -> None:
        """Make the parts and hand them to the handlers through tornado's settings."""
        assert self.serverapp is not None
        state_dir = Path(self.state_dir)
        self.client = ClearMLClient(parent=self)
        self.manager = ClearMLSessionManager(
            self.client,
            state_dir / "attached.json",
            start_local=self._start_local,
            stop_local=self._stop_local,
            log=self.log,
            parent=self,
        )
        self.kernels = SessionKernelManager(self.manager, self.serverapp.kernel_spec_manager, log=self.log)
        forwards = ForwardManager(self.manager, state_dir / "known_hosts")
        aparts = apart.Aparts()
        self.manager.add_hook(on_gone=forwards.forget)
        self.manager.add_hook(on_gone=aparts.forget)
        assert self.serverapp.event_logger is not None
        self._unpublish = events.publish(self.manager, self.serverapp.event_logger)
        self.settings.update(
            {
                "clearml_session_manager": self.manager,
                "clearml_session_presets": PresetManager(Path(self.presets_dir)),
                "clearml_session_kernels": self.kernels,
                "clearml_session_forwards": forwards,
                "clearml_session_aparts": aparts,
            }
        )
        # Runs once the loop does; nothing of it may delay the start of the server.
        self.serverapp.io_loop.add_callback(self._start)

    def initialize_handlers(self) -> None:
        self.handlers.extend(api_handlers)
        self.handlers.extend(apart.handlers)
        assert self.serverapp is not None
        web_app: Any = self.serverapp.web_app
        strict.guard(web_app)
        proxy.install(web_app, self.serverapp.base_url)

    async def stop_extension(self) -> None:
        """Close tunnels and relays and end the embedded default. Remote sessions and their kernels go on."""
        unpublish, self._unpublish = self._unpublish, None
        if unpublish is None:
            return  # a second signal while we end
        unpublish()
        await self.kernels.close()
        await self.manager.close()
        await self._stop_local()
        await self.client.close()

    def _start(self) -> None:
        self.kernels.start()
        self.manager.start()

    async def _start_local(self) -> Mapping[str, str]:
        from .local import LocalMode  # what it needs would take a third of our part of a server's start

        if self._local is None:
            self._local = LocalMode(Path(self.state_dir) / "local", log=self.log)
        return await self._local.start()

    async def _stop_local(self) -> None:
        if self._local is not None:
            await self._local.stop()
