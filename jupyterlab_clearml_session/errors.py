"""Every failure that a user can meet: one class each, with a code, an HTTP status and a hint.

The REST layer turns any of them into ``{"error": {"code", "message", "hint", "detail"}}`` with the class's
status; the front end and the magic show ``message`` and ``hint`` as they are. No message, hint or detail may
hold a secret.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ClearMLSessionError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message:
        One sentence that says what happened, for a person.
    hint:
        What the person can do about it; the class's own hint where left out.
    detail:
        JSON-able facts for programs (the field's name, the attempt, the log tail).
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.detail: dict[str, Any] = detail

    def to_json(self) -> dict[str, Any]:
        """Return the body of the contract's ``error`` member (docs/rest-api.md)."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "detail": self.detail}

    def _render_traceback_(self) -> list[str]:
        """Tell IPython what to show of this error: what happened and what to do, not our frames."""
        lines = [f"\x1b[31m{type(self).__name__}\x1b[39m: {self.message}"]
        return [*lines, self.hint] if self.hint else lines


# -- bad input ---------------------------------------------------------------------------------------------


class InvalidInput(ClearMLSessionError):
    """A field of a request has a value that cannot be used; ``detail.field`` names it."""

    code = "invalid_input"
    status = 400

    def __init__(self, message: str, *, field: str, hint: str | None = None, **detail: Any) -> None:
        super().__init__(message, hint=hint, field=field, **detail)


class UnknownQueue(InvalidInput):
    """The queue does not exist on the ClearML server."""

    code = "unknown_queue"
    default_hint = "Pick one of the queues in the list; an administrator creates queues in ClearML."


class UnknownSource(InvalidInput):
    """ClearML has no Task with the id that a launch is to start from."""

    code = "unknown_task"


class NotDebuggable(InvalidInput):
    """The Task given as ``debugging_session`` cannot be debugged (it has no repository, say)."""

    code = "not_debuggable"


class NotARepository(InvalidInput):
    """The folder does not lie in a git repository."""

    code = "not_a_repository"


class UnknownSession(ClearMLSessionError):
    """No session has this id (or the id is not one)."""

    code = "unknown_session"
    status = 404
    default_hint = "It may have been deleted. Refresh the list of sessions."


class UnknownTask(ClearMLSessionError):
    """No ClearML Task has this id."""

    code = "unknown_task"
    status = 404


class UnknownPreset(ClearMLSessionError):
    """No preset has this name."""

    code = "unknown_preset"
    status = 404


class UnknownKernel(ClearMLSessionError):
    """No kernel with this id lives on the session."""

    code = "unknown_kernel"
    status = 404


class WrongPhase(ClearMLSessionError):
    """What was asked for cannot be done in the session's phase."""

    code = "wrong_phase"
    status = 409


class NotAttached(WrongPhase):
    """The tunnel of the session is not up in this server."""

    code = "not_attached"
    default_hint = "Attach to the session first."


class Conflict(ClearMLSessionError):
    """Something with this name or number is there already (a local port in use, say)."""

    code = "conflict"
    status = 409


# -- ClearML -----------------------------------------------------------------------------------------------


class NotConfigured(ClearMLSessionError):
    """There is no ClearML configuration on this machine."""

    code = "not_configured"
    status = 503
    default_hint = "Open the ClearML panel: paste credentials there, or try it on this machine."


class ClearMLUnreachable(ClearMLSessionError):
    """The ClearML API server cannot be reached."""

    code = "clearml_unreachable"
    status = 503
    default_hint = (
        "Check the network and the address of the API server. The list of sessions comes back by itself."
    )


class ClearMLDeadline(ClearMLSessionError):
    """The ClearML API server accepted the request but did not answer in time."""

    code = "clearml_deadline"
    status = 504
    default_hint = "The ClearML server is slow or stuck. The list of sessions comes back by itself."


class ClearMLBadAnswer(ClearMLSessionError):
    """The ClearML API server answered with an error of its own, or with something that is not its protocol."""

    code = "clearml_bad_answer"
    status = 502
    default_hint = "Is the address really that of a ClearML API server (usually port 8008)?"


class UnknownEndpoint(ClearMLBadAnswer):
    """The server does not have this call (an open-source server has no vaults, say)."""

    code = "clearml_unknown_endpoint"


class BadCredentials(ClearMLSessionError):
    """The ClearML API server does not accept the credentials."""

    code = "bad_credentials"
    status = 401
    default_hint = "Create new credentials in ClearML (Settings, Workspace) and paste them in the panel."


class Forbidden(ClearMLSessionError):
    """The ClearML user may not do this."""

    code = "forbidden"
    status = 403


class UploadFailed(ClearMLSessionError):
    """The file server did not take the session's files."""

    code = "upload_failed"
    status = 502
    default_hint = "Is there room on ClearML's file server, and may you write to it?"


# -- the life of a session ---------------------------------------------------------------------------------


class SessionFailed(ClearMLSessionError):
    """The session's Task failed or ended before its services came up; ``detail.log_tail`` holds the last lines."""

    code = "session_failed"
    status = 424
    default_hint = "The last lines of the log usually say why."


class SetupDeadline(SessionFailed):
    """The session runs, but its SSH server, or else its Jupyter, did not come up in time."""

    code = "setup_deadline"
    default_hint = "The remote machine could not start an SSH server: look at the log, or force dropbear."


class SessionAborted(SessionFailed):
    """The session was stopped from elsewhere while it was waited for."""

    code = "session_aborted"
    default_hint = "Somebody stopped the Task in ClearML, or shut its Jupyter down."


class JupyterNotStarted(SessionFailed):
    """The session runs, but its Jupyter server did not start."""

    code = "jupyter_not_started"


class JupyterPortClash(SessionFailed):
    """The published Jupyter port answers, but it is another session's Jupyter."""

    code = "jupyter_port_clash"
    default_hint = (
        "Two sessions started at the same time on one host. Shut this one down and launch it again."
    )


class RemoteJupyterGone(ClearMLSessionError):
    """The remote Jupyter server stopped answering while the tunnel is up."""

    code = "jupyter_gone"
    status = 424
    default_hint = (
        "It may have been ended or run out of memory. Kernels started from here are not affected by it."
    )


class WorkspaceFailed(ClearMLSessionError):
    """The workspace could not be packed on the remote machine, or not be kept here for the upload."""

    code = "workspace_failed"
    status = 424
    default_hint = "Does the folder exist over there, and can it be read?"


# -- the tunnel --------------------------------------------------------------------------------------------


class TunnelError(ClearMLSessionError):
    """Base of the causes for which the SSH connection cannot be made. ``fatal`` ones are never retried."""

    code = "tunnel_failed"
    status = 424
    fatal: ClassVar[bool] = False


class HostNotFound(TunnelError):
    """The address of the remote machine has no entry in the name service."""

    code = "host_not_found"
    default_hint = "Is this machine in the right network (VPN)?"


class ConnectionRefused(TunnelError):
    """The remote machine answers, but nothing listens on the SSH port."""

    code = "connection_refused"


class ConnectionTimedOut(TunnelError):
    """Nothing answered on the SSH port in time."""

    code = "connection_timed_out"
    default_hint = "A firewall may be in the way, or the address is only valid in another network (VPN)."


class NoRoute(TunnelError):
    """There is no route to the remote machine."""

    code = "no_route"
    default_hint = "Is this machine in the right network (VPN)?"


class HostKeyMismatch(TunnelError):
    """The host key is not the one of this session: somebody may be in the middle."""

    code = "host_key_mismatch"
    fatal = True
    default_hint = (
        "Do not connect. The address may have been given to another machine, or somebody listens in."
    )


class AuthenticationFailed(TunnelError):
    """The SSH server does not accept the session's password."""

    code = "ssh_authentication_failed"
    fatal = True


class GatewayFailed(TunnelError):
    """The gateway before the remote machine closed the connection before SSH spoke."""

    code = "gateway_failed"


class ConnectionLost(TunnelError):
    """The SSH connection broke."""

    code = "connection_lost"


class TunnelDown(ClearMLSessionError):
    """The tunnel is being (re)connected and did not come up within the time a request may wait."""

    code = "tunnel_down"
    status = 503
    default_hint = "It is being reconnected; try again in a moment."


# -- through the tunnel ------------------------------------------------------------------------------------


class RemoteRefused(ClearMLSessionError):
    """Nothing listens on that port of the remote machine."""

    code = "remote_refused"
    status = 502


class TooManyChannels(ClearMLSessionError):
    """As many channels to the remote machine are open as may be."""

    code = "too_many_channels"
    status = 503
    default_hint = "Close some of the pages or forwards that are open to it."


class RemoteBadAnswer(ClearMLSessionError):
    """The remote service broke its protocol, or the connection, in the middle of an answer."""

    code = "remote_bad_answer"
    status = 502


class ForeignSession(ClearMLSessionError):
    """The session belongs to someone else, and this user has not yet agreed to open its pages here."""

    code = "foreign_session"
    status = 403
    default_hint = (
        "Its pages run in the origin of your JupyterLab: whoever controls that machine could then read your files "
        "and run code here, in your name."
    )
    link: str = ""
    """Where the warning's page leads on; not part of the JSON, as a page must not follow it by itself."""
    apart: str = ""
    """Where it opens the session at an address of its own; empty where the browser could not reach that."""


class ApartClosed(ClearMLSessionError):
    """A session's own address was visited by somebody who did not come from the warning's page."""

    code = "apart_closed"
    status = 403
    default_hint = "Open the session in JupyterLab's panel, and from there at its own address again."


class RemoteDeadline(ClearMLSessionError):
    """The remote service did not answer in time."""

    code = "remote_deadline"
    status = 504


class KernelFailed(ClearMLSessionError):
    """A remote kernel could not be started, or the helper that runs it failed."""

    code = "kernel_failed"
    status = 424


class HelperFailed(KernelFailed):
    """The helper that runs a session's kernels cannot run on its machine; no fault of the connection."""

    code = "helper_failed"
    default_hint = (
        "All but kernels works: pages, terminals, files. The helper is tried again now and then, and at once when "
        "you choose Reconnect."
    )


# -- this machine ------------------------------------------------------------------------------------------


class LocalModeFailed(ClearMLSessionError):
    """The embedded default could not be started on this machine."""

    code = "local_mode_failed"
    status = 424


class GitFailed(ClearMLSessionError):
    """git is missing, or failed, or took too long on the local repository."""

    code = "git_failed"
    status = 424


class PresetsUnwritable(ClearMLSessionError):
    """The file of the presets cannot be read or written."""

    code = "presets_unwritable"
    status = 424
    default_hint = "Look at the rights of the folder, and whether the disk is full."


class RemoteScriptMissing(ClearMLSessionError):
    """The clearml-session package, whose remote script every session runs, is not installed."""

    code = "remote_script_missing"
    status = 424
    default_hint = "Install it: pip install 'clearml-session>=0.17,<0.18'."


# -- the magic ---------------------------------------------------------------------------------------------


class BadArguments(ClearMLSessionError):
    """The words behind ``%clearml_session`` make no command."""

    code = "bad_arguments"
    status = 400


class ServerNotFound(ClearMLSessionError):
    """No Jupyter server that could answer for this kernel was found."""

    code = "server_not_found"
    status = 503


class ServerUnreachable(ClearMLSessionError):
    """The local Jupyter server does not answer, or not in time."""

    code = "server_unreachable"
    status = 503
    default_hint = "Is it still running? '%clearml_session server' says which one is meant."


class ServerRefused(ClearMLSessionError):
    """The local Jupyter server does not accept our token, or lacks this extension."""

    code = "server_refused"
    status = 403


class AmbiguousSession(ClearMLSessionError):
    """Several sessions could be meant; ``detail.sessions`` lists their ids and names."""

    code = "ambiguous_session"
    status = 409
    default_hint = "Name one: its id, the beginning of its id, or its name."


class NotReadyInTime(ClearMLSessionError):
    """The session did not reach the phase that was waited for within the given time. It goes on."""

    code = "not_ready_in_time"
    status = 504


class WaitInterrupted(ClearMLSessionError):
    """Waiting was interrupted by the user. The session goes on."""

    code = "wait_interrupted"
    status = 409


class RemoteCellError(ClearMLSessionError):
    """A cell raised an exception on the session; ``detail`` holds ``ename``, ``evalue`` and ``traceback``."""

    code = "remote_exception"
    status = 424

    def _render_traceback_(self) -> list[str]:
        return [*self.detail.get("traceback", ()), *super()._render_traceback_()]


class RemoteCellInterrupted(RemoteCellError):
    """The cell was interrupted on the session."""

    code = "remote_interrupted"


class TransferFailed(ClearMLSessionError):
    """A variable could not be moved between here and the session; ``detail.variable`` names it."""

    code = "transfer_failed"
    status = 424


class TransferTooLarge(TransferFailed):
    """The variables are larger than what is moved without ``--force``."""

    code = "transfer_too_large"
    status = 413
    default_hint = "Give --force to move them all the same, or keep the data on the session."
