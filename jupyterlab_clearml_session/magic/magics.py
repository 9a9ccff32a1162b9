"""The two magics: words in, a call of the local server, an object out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import StdinNotImplementedError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from ..errors import BadArguments, ServerNotFound
from . import objects
from .arguments import Parsed, find_command, overview, parse, split, usage
from .choose import CannotAsk, choose
from .client import Client
from .commands import DEFAULT_LINES, PLACES, commands
from .completion import Completer, add_matcher
from .displays import tag
from .launch_options import NO_PLACE, launch_body
from .live import Live
from .objects import SessionHandle, SessionList
from .server import Server, find_server, kernel_id_of, server_at
from .waiting import interruptible, wait_until_ready

if TYPE_CHECKING:  # they bring ZMQ along, which only a remote cell needs
    from .kernels import NotebookKernels
    from .result import RunResult


@magics_class
class ClearMLSessionMagics(Magics):
    """``%clearml_session SUBCOMMAND ...`` and ``%%clearml_session run ...``."""

    shell: Any

    def __init__(self, shell: Any, client: Client | None = None) -> None:
        super().__init__(shell)
        self.client = client or Client(self._find_server)
        self._kernels_there: NotebookKernels | None = None
        self._do: Mapping[str, Callable[[Parsed], Any]] = {
            "list": self._list,
            "queues": self._queues,
            "presets": self._presets,
            "launch": self._launch,
            "attach": self._attach,
            "status": self._status,
            "info": self._info,
            "log": self._log,
            "open": self._open,
            "detach": self._detach,
            "shutdown": self._shutdown,
            "run": self._run_line,
            "server": self._server,
        }
        add_matcher(shell, Completer(self.client, self._variables))

    @line_cell_magic
    def clearml_session(self, line: str, cell: str | None = None) -> Any:
        """Sessions on ClearML machines: ``%clearml_session`` alone prints what there is."""
        with interruptible():
            return self._dispatch(split(line), cell)

    def _dispatch(self, words: list[str], cell: str | None) -> Any:
        if not words and cell is not None:
            raise BadArguments(
                "What shall be done with the cell?", hint="Begin it with %%clearml_session run"
            )
        if not words or words[0] in ("--help", "-h", "help"):
            print(overview(commands()))  # noqa: T201 - that is what it is asked for
            return None
        command = find_command(commands(), words[0])
        parsed = parse(command, words[1:], NO_PLACE if command.name == "launch" else None)
        if parsed.get("help"):
            print(usage(command))  # noqa: T201
            return None
        if cell is None:
            return self._do[command.name](parsed)
        if command.name != "run":
            raise BadArguments(
                f"'{command.name}' takes no cell.",
                hint=f"Write %clearml_session {command.name}, with one percent sign.",
            )
        self._run_cell(parsed, cell)
        return None

    # -- the subcommands ---------------------------------------------------------------------------------------

    def _list(self, parsed: Parsed) -> SessionList:
        ended = parsed.get("ended", False)
        sessions = self.client.sessions(
            "ended" if ended else "active",
            all_users=parsed.get("all_users", False),
            tag=parsed.get("tag"),
            project=parsed.get("project"),
        )
        return SessionList(sessions, self, f"There is no {'ended' if ended else 'active'} session.")

    def _queues(self, parsed: Parsed) -> objects.Table:
        return objects.queue_table(self.client.queues())

    def _presets(self, parsed: Parsed) -> objects.Table:
        return objects.preset_table(self.client.presets())

    def _launch(self, parsed: Parsed) -> SessionHandle:
        if parsed.words:
            raise BadArguments(f"'launch' takes options only, not {parsed.words[0]!r}.")
        if "timeout" in parsed.values and not parsed.get("wait"):
            raise BadArguments("--timeout goes with --wait.")
        body = launch_body(parsed.values, self._ask_password)
        handle = SessionHandle(self.client.launch(body), self)
        return handle.wait(parsed.get("timeout")) if parsed.get("wait") else handle

    def _attach(self, parsed: Parsed) -> SessionHandle:
        handle = SessionHandle(self.client.act(self._chosen(parsed)["id"], "attach"), self)
        return handle if parsed.get("no_wait") else handle.wait(parsed.get("timeout"))

    def _status(self, parsed: Parsed) -> objects.Shown:
        if parsed.words or "id" in parsed.values:
            return SessionHandle(self._chosen(parsed), self)
        status = self.client.status()
        sessions = None
        if status.get("reachable"):
            sessions = SessionList(self.client.sessions(), self, "There is no active session.")
        return objects.Status(status, sessions, self.client.server.url)

    def _info(self, parsed: Parsed) -> objects.SessionInfo:
        return objects.SessionInfo(self._chosen(parsed))

    def _log(self, parsed: Parsed) -> objects.Log:
        lines = parsed.get("lines", DEFAULT_LINES)
        if not 1 <= lines <= 10_000:
            raise BadArguments("-n is a number from 1 to 10000.")
        return objects.Log(self.client.log(self._chosen(parsed)["id"], lines))

    def _open(self, parsed: Parsed) -> objects.Place:
        kind = parsed.words.pop() if parsed.words and parsed.words[-1] in PLACES else "jupyter"
        return objects.place(self._chosen(parsed), kind, self.client.server.base_url)

    def _detach(self, parsed: Parsed) -> SessionHandle:
        return SessionHandle(self.client.act(self._chosen(parsed)["id"], "detach"), self)

    def _shutdown(self, parsed: Parsed) -> SessionHandle:
        chosen = self._chosen(parsed)
        return SessionHandle(self.client.shutdown(chosen["id"], purge=parsed.get("purge", False)), self)

    def _server(self, parsed: Parsed) -> objects.ServerInfo:
        if len(parsed.words) > 1:
            raise BadArguments("'server' takes one address.")
        if parsed.words:
            self.client.use(self._named_server(parsed.words[0]))
            self.client.status()
        server = self.client.server
        return objects.ServerInfo(server.url, server.found)

    def _run_line(self, parsed: Parsed) -> None:
        raise BadArguments("'run' needs a cell.", hint="Begin the cell with %%clearml_session run")

    def _run_cell(self, parsed: Parsed, cell: str) -> None:
        options = {
            "kernel": parsed.get("kernel"),
            "new": parsed.get("new", False),
            "in": _listed(parsed.get("in", "")),
            "out": _listed(parsed.get("out", "")),
            "force": parsed.get("force", False),
        }
        self._run_there(self._chosen(parsed), cell, options)

    # -- what a handle can do (objects.Actions) ----------------------------------------------------------------

    def refresh(self, session_id: str) -> dict[str, Any]:
        with interruptible():
            return self.client.session(session_id)

    def wait(self, session_id: str, timeout: float | None) -> dict[str, Any]:
        return wait_until_ready(self.client, session_id, Live(self.shell), timeout=timeout)

    def act(self, session_id: str, action: str) -> dict[str, Any]:
        with interruptible():
            return self.client.act(session_id, action)

    def shutdown(self, session_id: str, purge: bool) -> dict[str, Any]:
        with interruptible():
            return self.client.shutdown(session_id, purge=purge)

    def kernels(self, session_id: str) -> list[dict[str, Any]]:
        with interruptible():
            return self.client.kernels(session_id)

    def log(self, session_id: str, limit: int) -> list[dict[str, Any]]:
        with interruptible():
            return self.client.log(session_id, limit)

    def run(self, session_id: str, code: str, options: Mapping[str, Any]) -> RunResult:
        with interruptible():
            return self._run_there(self.client.session(session_id), code, options)

    def _run_there(self, session: dict[str, Any], code: str, options: Mapping[str, Any]) -> RunResult:
        """Take variables along, run the code, bring variables back."""
        from .transfer import bring, take

        kernel = self._notebook_kernels().get(session, options["kernel"], new=options["new"])
        names: dict[str, Any] = self.shell.user_ns
        if options["in"]:
            with self._line() as show:
                take(kernel, options["in"], names, force=options["force"], show=show)
        result = kernel.run(code)
        if options["out"]:
            with self._line() as show:
                names.update(bring(kernel, options["out"], force=options["force"], show=show))
        return result

    # -- helpers -----------------------------------------------------------------------------------------------

    def _chosen(self, parsed: Parsed) -> dict[str, Any]:
        """Return the session that the words mean; a name of several words needs no quotation marks."""
        if parsed.words and "id" in parsed.values:
            raise BadArguments("Name the session once: as a word or with --id.")
        return choose(self.client, parsed.get("id") or " ".join(parsed.words), self._ask)

    def _ask(self, listing: str, question: str) -> str:
        print(listing)  # noqa: T201
        try:
            return input(question)
        except (StdinNotImplementedError, EOFError):
            raise CannotAsk from None

    def _ask_password(self) -> str:
        try:
            return getpass("SSH password of the session: ")
        except (StdinNotImplementedError, EOFError):
            raise BadArguments(
                "Nobody is here to ask for the password.", hint="Leave --password out."
            ) from None

    @contextmanager
    def _line(self) -> Iterator[Callable[[str], None]]:
        """Give a function that shows a text in place of the one it showed before."""
        live = Live(self.shell)
        try:
            yield lambda text: live.show(text, tag("div", text))
        finally:
            live.close()

    def _notebook_kernels(self) -> NotebookKernels:
        if self._kernels_there is None:
            from .kernels import NotebookKernels

            file = self._connection_file()
            owner = kernel_id_of(file) if file else None
            self._kernels_there = NotebookKernels(self.client, self.shell, owner or "", _folders(file))
        return self._kernels_there

    def _variables(self) -> list[str]:
        return [name for name in self.shell.user_ns if not name.startswith("_")]

    def _find_server(self) -> Server:
        file = self._connection_file()
        return find_server(kernel_id_of(file) if file else None, _folders(file))

    def _named_server(self, url: str) -> Server:
        file = self._connection_file()
        server = server_at(url, "", _folders(file), found="named in this notebook")
        if server.token:
            return server
        try:
            token = getpass(f"Token of {server.url}: ")
        except (StdinNotImplementedError, EOFError):
            raise ServerNotFound(
                f"{server.url} is none of the Jupyter servers that run here, so its token is not known.",
                hint="Set JUPYTERLAB_CLEARML_SESSION_URL and JUPYTERLAB_CLEARML_SESSION_TOKEN in the environment.",
            ) from None
        return server_at(url, token.strip(), _folders(file), found="named in this notebook")

    def _connection_file(self) -> str:
        """Return the path of this kernel's connection file, "" in an IPython that is no kernel."""
        config = getattr(self.shell, "config", None) or {}
        return str(config.get("IPKernelApp", {}).get("connection_file", "") or "")


def _listed(names: str) -> list[str]:
    """Return the names of ``a,b``. Raises BadArguments."""
    listed = [name.strip() for name in names.split(",") if name.strip()]
    for name in listed:
        if not name.isidentifier():
            raise BadArguments(f"{name!r} is not the name of a variable.")
    return list(dict.fromkeys(listed))


def _folders(connection_file: str) -> list[Path]:
    """Return where Jupyter servers of this user leave their notes."""
    from jupyter_core.paths import jupyter_runtime_dir

    folders = [Path(jupyter_runtime_dir())]
    if connection_file:
        folders.append(Path(connection_file).parent)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
