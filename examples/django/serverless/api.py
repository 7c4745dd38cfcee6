"""A small client of the Machines API: standard library only."""

import json
import os
import urllib.error
import urllib.request
from urllib.parse import quote


class Error(Exception):
    """The API did not do it. status is 0 if it did not answer at all."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class API:
    """The machines of one app."""

    def __init__(self, app, environ=os.environ):
        base = environ.get("FLY_FLAPS_BASE_URL") or "http://_api.internal:4280"
        self.url = f"{base.rstrip('/')}/v1/apps/{quote(app)}/machines"
        self.token = environ.get("FLY_API_TOKEN", "")

    def list(self):
        return self.call("GET", "")

    def get(self, machine, timeout=None):
        return self.call("GET", "/" + quote(machine), timeout=timeout)

    def create(self, **body):
        return self.call("POST", "", body)

    def update(self, machine, **body):
        return self.call("POST", "/" + quote(machine), body)

    def destroy(self, machine, force=False):
        return self.call("DELETE", f"/{quote(machine)}?force={'true' if force else 'false'}")

    def call(self, method, path, body=None, timeout=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer " + self.token, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout or 20) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise Error(error.code, f"{method} {error.url}: {error.code} {error.read(500).decode(errors='replace')}") from None
        except (OSError, ValueError) as error:  # no connection, a time-out, not JSON
            raise Error(0, f"{method} {request.full_url}: {error}") from error
