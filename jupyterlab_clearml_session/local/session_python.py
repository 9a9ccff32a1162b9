"""The ``python`` that the agent runs a Task with in a sandbox: packages first, then the Task.

The agent itself installs nothing there (a virtual environment takes minutes). Here the Task's packages are
checked against this environment; what is missing is installed into a virtual environment on top of it, and if
pip cannot, the Task fails with pip's own message. Started by its path, with the standard library and
``packaging`` only.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import site
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

# The launcher asks for these always. They are there, or the session does without.
_TAKEN_AS_THEY_ARE = frozenset({"clearml", "jupyter", "jupyterlab", "jupyterlab-git", "traitlets", "pylint"})

_LOOPBACK = "127.0.0.1"


def main(arguments: list[str]) -> None:
    """Prepare the environment and become the Python that runs ``arguments``."""
    python = sys.executable
    if _runs_a_task(arguments):
        task_id = os.environ["CLEARML_TASK_ID"]
        api = _Api(Path(os.environ["CLEARML_CONFIG_FILE"]))
        task = api.call("tasks.get_by_id", {"task": task_id})["task"]
        if "interactive" in task.get("system_tags", []):
            # Run by root, the script would otherwise set root's password and start the machine's own sshd.
            forced = {"section": "interactive_session", "name": "force_dropbear", "value": "True"}
            api.call("tasks.edit_hyper_params", {"task": task_id, "hyperparams": [forced], "force": True})
            # The remote script publishes the address of the network card otherwise; its SSH server is on
            # loopback only. This is where a gateway puts its address, too.
            api.call(
                "tasks.edit_runtime", {"task": task_id, "add_or_update": {"external_address": _LOOPBACK}}
            )
        missing = missing_requirements(requirements_of(task))
        if missing:
            python = _install(missing, Path(os.environ["TMPDIR"]) / f"venv-{task_id}")
    os.execv(python, [python, *arguments])  # noqa: S606 - becoming the task's process is the purpose


def _runs_a_task(arguments: list[str]) -> bool:
    return bool(os.environ.get("CLEARML_TASK_ID")) and any(item.endswith(".py") for item in arguments)


class _Api:
    """The few calls that are needed, without the second that importing the SDK takes."""

    def __init__(self, config: Path) -> None:
        settings = json.loads(config.read_text(encoding="utf-8"))["api"]
        pair = f"{settings['credentials']['access_key']}:{settings['credentials']['secret_key']}"
        self._server = settings["api_server"]
        self._authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, name: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            f"{self._server}/{name}",
            json.dumps(body).encode(),
            {"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=10) as answer:
            return json.load(answer)["data"]


def requirements_of(task: dict[str, Any]) -> list[str]:
    listed = (task.get("script", {}).get("requirements") or {}).get("pip") or []
    lines = listed.splitlines() if isinstance(listed, str) else listed
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def missing_requirements(lines: list[str]) -> list[str]:
    return [line for line in lines if not _is_there(line)]


def _is_there(line: str) -> bool:
    try:
        requirement = Requirement(re.sub(r"\s+#.*$", "", line))
    except InvalidRequirement:
        return False  # an option, a path, a URL, or nonsense: pip knows what to say
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if name not in _TAKEN_AS_THEY_ARE:
            return False
        _say(f"'{requirement.name}' is not installed here; going on without it.")
        return True
    if requirement.url:
        return False
    return name in _TAKEN_AS_THEY_ARE or requirement.specifier.contains(version, prereleases=True)


def _install(lines: list[str], directory: Path) -> str:
    _say("Installing packages that this environment does not have: " + ", ".join(lines))
    venv.create(directory, with_pip=False, symlinks=True, clear=True)
    python = str(directory / "bin" / "python")
    _stack_on_this_environment(directory)
    listing = directory / "requirements.txt"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check"]
    status = subprocess.call([*command, "--no-input", "-r", str(listing)])
    if status != 0:
        sys.exit(f"The packages of this session could not be installed (pip ended with status {status}).")
    return python


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _stack_on_this_environment(directory: Path) -> None:
    """Let the new environment see the packages of this one, after its own.

    ``system_site_packages`` would show those of the base interpreter, not of the environment we run in.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(directory)})) if os.name == "nt" else None
    packages = own or directory / "lib" / version / "site-packages"
    packages.joinpath("below.pth").write_text(
        "\n".join(f"import site; site.addsitedir({path!r})" for path in _site_directories()) + "\n",
        encoding="utf-8",
    )


def _site_directories() -> list[str]:
    paths = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(paths) if Path(path).is_dir()]


if __name__ == "__main__":
    main(sys.argv[1:])
