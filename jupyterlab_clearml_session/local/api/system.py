"""The calls about the server and its one user: ``users``, ``server``, ``debug``, ``login``.

``users.get_vaults`` and ``workers.get_runtime_properties`` are not here on purpose: an open-source server
answers 404 to them, and its clients go on without.
"""

from __future__ import annotations

from .auth import API_VERSION, COMPANY_ID, COMPANY_NAME, SERVER_VERSION, USER_ID, USER_NAME
from .errors import unknown_user
from .schema import NEEDED, Body, Context, Table
from .store import now

table = Table()

PUBLIC = frozenset({"debug.ping", "login.supported_modes"})
"""Answered without credentials."""

_CREATED = now()


@table.endpoint("debug.ping")
def ping(context: Context, body: Body) -> Body:
    return {"msg": "ClearML server"}


@table.endpoint("login.supported_modes")
def supported_modes(context: Context, body: Body) -> Body:
    return {
        "authenticated": False,
        "basic": {"enabled": False, "guest": {"enabled": False}},
        "server_errors": {"es_connection_error": False, "missed_es_upgrade": False},
        "sso": {},
        "sso_providers": [],
    }


@table.endpoint("server.info", "server.config")
def info(context: Context, body: Body) -> Body:
    return {"version": SERVER_VERSION, "build": "", "commit": "", "api_version": API_VERSION}


@table.endpoint("users.get_current_user")
def get_current_user(context: Context, body: Body) -> Body:
    return {
        "user": {
            "id": USER_ID,
            "name": USER_NAME,
            "role": "user",
            "created": _CREATED,
            "company": {"id": COMPANY_ID, "name": COMPANY_NAME},
        },
        "getting_started": {
            "agentName": "clearml",
            "configure": "clearml-init",
            "install": "pip install clearml",
            "packageName": "clearml",
        },
        "settings": {"max_download_items": 50000},
    }


@table.endpoint("users.get_by_id", user=NEEDED)
def get_by_id(context: Context, body: Body) -> Body:
    if body["user"] != USER_ID:
        raise unknown_user(body["user"], COMPANY_ID)
    return {"user": {"id": USER_ID, "name": USER_NAME, "company": COMPANY_ID}}


@table.endpoint("users.get_all", "users.get_all_ex")
def get_all(context: Context, body: Body) -> Body:
    return {"users": [{"id": USER_ID, "name": USER_NAME, "company": COMPANY_ID}]}
