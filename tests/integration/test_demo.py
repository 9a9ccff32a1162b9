"""`jupyter clearml-session demo --once`: the main job by itself, in an empty HOME, leaving nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_the_demo_once(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    command = (
        "import sys; from jupyterlab_clearml_session.app import main; sys.exit(main(['demo', '--once']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    phases = report["phases"]
    assert list(phases)[-1] == "ready"
    assert report["ours_s"] <= 3.0
    assert report["remote_s"] + report["ours_s"] == pytest.approx(phases["ready"], abs=0.02)
    assert report["cell"]["output"].startswith(str(temporary)), "the cell ran in the sandbox's HOME"
    assert report["shutdown_s"] >= 0
    assert list(temporary.iterdir()) == [], "its folder is gone"
