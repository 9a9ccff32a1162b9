"""The manager's changes as Jupyter events, for everybody who subscribes to the server's event stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jupyter_events import EventLogger

from ..models import SessionEvent
from ..sessions import ClearMLSessionManager

SCHEMA_ID = "https://schema.jupyterlab-clearml-session.org/session/v1"
_SCHEMA = Path(__file__).parent / "schemas" / "session.v1.yaml"


def publish(manager: ClearMLSessionManager, event_logger: EventLogger) -> Callable[[], None]:
    """Emit every change of ``manager`` as an event; returns what ends that."""
    if SCHEMA_ID not in event_logger.schemas:
        event_logger.register_event_schema(_SCHEMA)

    def emit(event: SessionEvent) -> None:
        event_logger.emit(schema_id=SCHEMA_ID, data=event.to_json())

    return manager.subscribe(emit)
