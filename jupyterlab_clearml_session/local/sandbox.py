"""The directory that an agent and its sessions live in, and the environment that they see.

Of the parent's environment only a short list is passed on, so nothing of the user's Jupyter, ClearML or SSH gets
into a session; HOME and TMPDIR lie inside. What pip needs to install packages is passed on with whatever
credentials the user has put there: its settings and the proxy's address.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from . import guard

MARKER = "JCS_LOCAL_MODE"
"""The variable that all processes of one LocalMode carry, with its own id: how they are found again."""

_AGENT = "JCS_LOCAL_AGENT"
"""The same for one agent and what it started."""

_PASSED_ON = frozenset(
    [
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "USER",
        "LOGNAME",
        "SHELL",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ]
)
_PASSED_ON_PREFIXES = ("LC_", "PIP_", "CUDA_", "NVIDIA_", "COVERAGE_")
_HERE = Path(__file__).resolve().parent

_PYTHON = """\
#!/bin/sh
# What the agent runs sessions with: it looks after the Task's packages first.
exec {python} {script} "$@"
"""

_DROPBEAR = """\
#!/bin/sh
# Stands in for dropbear: the same command line, as far as the remote script uses it.
case "$1" in
  -V) echo 'asyncssh, standing in for dropbear' ;;
  dropbearconvert) umask 077; exec cp "$4" "$5" ;;
  dropbear) shift; exec {python} {script} "$@" ;;
  *) exit 1 ;;
esac
"""


class Sandbox:
    """One agent's directory: ``home``, ``tmp``, ``bin`` and its configuration."""

    def __init__(self, root: Path, credentials: Mapping[str, str], mode_id: str) -> None:
        self.root = root
        self.home = root / "home"
        self.config = root / "clearml.conf"
        self._tmp = root / "tmp"
        self._bin = root / "bin"
        self._credentials = credentials
        self._mode_id = mode_id

    def create(self) -> None:
        """Make the directory's parts. What sessions left in HOME stays; TMPDIR starts empty."""
        shutil.rmtree(self._tmp, ignore_errors=True)
        for path in (self.root, self.home, self._tmp, self._bin):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(self.config, _configuration(self._credentials, self.root), 0o600)
        self._hide_ourselves()
        python = shlex.quote(sys.executable)
        for name, template, script in (
            ("session-python", _PYTHON, "session_python.py"),
            ("dropbear", _DROPBEAR, "sshd.py"),
        ):
            text = template.format(python=python, script=shlex.quote(str(_HERE / script)))
            self._write(self._bin / name, text, 0o700)

    def environment(self, worker: str) -> dict[str, str]:
        """What the agent of this name is started with."""
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
        }
        python_bin = str(Path(sys.executable).parent)
        passed.update(
            HOME=str(self.home),
            TMPDIR=str(self._tmp),
            PATH=os.pathsep.join([python_bin, passed.get("PATH", os.defpath)]),
            NO_PROXY="127.0.0.1,localhost",
            no_proxy="127.0.0.1,localhost",
            CLEARML_CONFIG_FILE=str(self.config),
            CLEARML_WORKER_NAME=worker,
            CLEARML_AGENT_SKIP_PIP_VENV_INSTALL=str(self._bin / "session-python"),
            CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL="1",
            CLEARML_AGENT_QUEUE_POLL_FREQ_SEC="1",
            CLEARML_DROPBEAR_EXEC=str(self._bin / "dropbear"),
            PYTHONUNBUFFERED="1",
            # The configuration in HOME counts more than the environment's, as outside of virtual environments.
            JUPYTER_PREFER_ENV_PATH="0",
        )
        passed[MARKER] = self._mode_id
        passed[_AGENT] = self._agent_id(worker)
        _keep_user_packages(passed)
        return passed

    def end_left_overs(self, worker: str) -> None:
        """Kill what the agent of this name started and did not end. Blocks for up to 10 s."""
        guard.kill_all(_AGENT, self._agent_id(worker))

    def _agent_id(self, worker: str) -> str:
        return f"{self._mode_id}/{worker}"

    def _hide_ourselves(self) -> None:
        """Sessions share our environment, but no remote machine has a ClearML panel in its JupyterLab."""
        jupyter = self.home / ".jupyter"
        for path, content in (
            (
                jupyter / "jupyter_server_config.d" / "local-mode.json",
                {"ServerApp": {"jpserver_extensions": {"jupyterlab_clearml_session": False}}},
            ),
            (
                jupyter / "labconfig" / "page_config.json",
                {"disabledExtensions": {"jupyterlab-clearml-session": True}},
            ),
        ):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                self._write(path, json.dumps(content), 0o600)

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> None:
        # Replaced, not changed: it may be running, and it may be a link that somebody put there.
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        path.chmod(mode)


def _configuration(credentials: Mapping[str, str], root: Path) -> str:
    """The ``clearml.conf`` of the agent and of what runs in it (HOCON, of which JSON is a part)."""
    settings = {
        "api": {
            "api_server": credentials["api_server"],
            "web_server": credentials["web_server"],
            "files_server": credentials["files_server"],
            "credentials": {
                "access_key": credentials["access_key"],
                "secret_key": credentials["secret_key"],
            },
        },
        "agent": {
            "disable_agent_update_check": True,
            # The agent refuses a folder with a space in its name, but not one below a HOME that has it.
            "venvs_dir": "~/venvs-builds" if re.search(r"\s", str(root)) else str(root / "venvs-builds"),
            "enable_git_ask_pass": False,
        },
        "sdk": {
            "development": {"check_for_updates": False, "default_output_uri": ""},
            "storage": {"cache": {"default_base_dir": str(root / "cache")}},
        },
    }
    # As it is: the agent's parser takes "\\u00fc" for six characters, and would make such a folder.
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _keep_user_packages(environment: dict[str, str]) -> None:
    """With another HOME, Python would not find packages that were installed with ``pip install --user``."""
    if site.ENABLE_USER_SITE:
        environment["PYTHONUSERBASE"] = site.getuserbase()
    pip_conf = Path.home() / ".config" / "pip" / "pip.conf"
    if "PIP_CONFIG_FILE" not in environment and pip_conf.is_file():
        environment["PIP_CONFIG_FILE"] = str(pip_conf)
