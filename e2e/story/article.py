"""The logic of a middleware that runs heavy views on a machine of their own,
as Django apps on Fly.io do it: plain Python and requests against the Machines
API. Found by name or made from the app's own machine, waited for, put to
sleep, woken by a request through the proxy, removed.

Every step checks the answer as such code relies on it; the first that does
not hold ends the program with a message. The last line says what was done.
"""

import os
import sys
import time

import requests

API = os.environ["FLY_API_HOSTNAME"].rstrip("/")
APP = os.environ["FLY_APP_NAME"]
IMAGE = os.environ["FLY_IMAGE_REF"]
APP_URL = os.environ["APP_URL"].rstrip("/")
APP_HOST = os.environ["APP_HOST"]
RECEIPT_PATH = os.environ["RECEIPT_PATH"]

NAME = "function-receipts"
MACHINES = f"{API}/v1/apps/{APP}/machines"
TIMEOUT = 90  # seconds for one call: a wait may take 60

session = requests.Session()
session.headers["Authorization"] = f"Bearer {os.environ['FLY_API_TOKEN']}"


def check(ok, what, response=None):
    if not ok:
        if response is not None:
            what += f": {response.status_code} {response.text[:500]} (request {response.headers.get('fly-request-id')})"
        sys.exit(what)


def call(method, url, want=200, **kwargs):
    response = session.request(method, url, timeout=TIMEOUT, **kwargs)
    check(response.status_code == want, f"{method} {url}: want status {want}", response)
    check(response.headers.get("fly-request-id"), f"{method} {url}: no fly-request-id")
    return response


def list_machines():
    # requests writes False as "False".
    return call("GET", MACHINES, params={"include_deleted": False}).json()


def find(name):
    return next((m for m in list_machines() if m["name"] == name), None)


def get_or_create():
    """Returns the function's machine, which exists afterwards."""
    machine = find(NAME)
    if machine:
        return machine
    own = next(m for m in list_machines() if m["name"].startswith("web-"))
    config = own["config"]
    for service in config["services"]:
        check(service["autostop"] in (False, True, "suspend"), f"autostop is {service['autostop']!r}")
        service.update(autostop="suspend", autostart=True, min_machines_running=0)
    response = session.post(
        MACHINES,
        json={
            "name": NAME,
            "region": own["region"],
            "config": {
                "image": IMAGE,
                "env": {**config["env"], "SERVERLESS_MACHINE": "1"},
                "guest": config["guest"],
                "services": config["services"],
                "restart": {"policy": "on-failure", "max_retries": 3},
                "metadata": {"made-by": "article"},
            },
        },
        timeout=TIMEOUT,
    )
    if response.status_code == 409:  # somebody else was faster
        return find(NAME)
    check(response.status_code == 200, "create", response)
    return response.json()


def wait_for(machine, state):
    url = f"{MACHINES}/{machine['id']}/wait"
    for _ in range(3):
        response = session.get(url, params={"state": state, "timeout": 30}, timeout=TIMEOUT)
        if response.status_code == 200:
            return
        check(response.status_code == 408, f"wait for {state}", response)
        check("machine failed to reach desired state" in response.json()["error"], "the text of a time-out", response)
    check(False, f"machine {machine['id']} is not {state}", response)


def receipt(machine):
    """Asks for a receipt on this machine, awake or not."""
    response = requests.get(
        APP_URL + RECEIPT_PATH,
        headers={"Host": APP_HOST, "fly-force-instance-id": machine["id"]},
        timeout=TIMEOUT,
    )
    check(response.status_code == 200 and response.content.startswith(b"%PDF-"), "no receipt", response)
    check(response.headers.get("Store-Machine") == machine["id"], f"the receipt came from {response.headers.get('Store-Machine')}")


def event_types(machine):
    return [e["type"] for e in call("GET", f"{MACHINES}/{machine['id']}").json()["events"]]


def main():
    began = time.monotonic()
    leftover = find(NAME)
    if leftover:
        call("DELETE", f"{MACHINES}/{leftover['id']}", params={"force": True})

    machine = get_or_create()
    check(get_or_create()["id"] == machine["id"], "a second search made a second machine")
    wait_for(machine, "started")
    receipt(machine)

    by_metadata = call("GET", MACHINES, params={"metadata.made-by": "article"}).json()
    check([m["id"] for m in by_metadata] == [machine["id"]], f"by metadata: {by_metadata}")
    taken = session.post(MACHINES, json={"name": NAME, "config": {"image": IMAGE}}, timeout=TIMEOUT)
    check(taken.status_code == 409 and taken.json().get("error"), "a taken name", taken)

    url = f"{MACHINES}/{machine['id']}"
    call("POST", f"{url}/suspend")
    wait_for(machine, "suspended")
    receipt(machine)  # woken by the request
    call("POST", f"{url}/stop", json={"signal": "SIGINT", "timeout": "10s"})
    wait_for(machine, "stopped")
    started = call("POST", f"{url}/start").json()
    check(started["previous_state"] == "stopped", f"start: {started}")
    wait_for(machine, "started")
    receipt(machine)
    types = event_types(machine)
    check("launch" in types and "stop" in types and "exit" in types, f"events: {types}")

    for token in ("", "roost_o_nonsense"):
        refused = requests.get(MACHINES, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=TIMEOUT)
        check(refused.status_code == 401 and refused.json()["error"].startswith("Authenticate: token validation error"), "a bad token", refused)
    call("GET", f"{MACHINES}/00000000000000", want=404)
    call("GET", f"{API}/v1/nothing", want=404)

    check(call("DELETE", url, params={"force": True}).json() == {"ok": True}, "destroy")
    check(find(NAME) is None, "the machine is still listed")
    deleted = call("GET", MACHINES, params={"include_deleted": True}).json()
    check(any(m["id"] == machine["id"] and m["state"] == "destroyed" for m in deleted), "the machine is not listed among the deleted")
    print(f"made, suspended, woken, stopped, started, removed machine {machine['id']} in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
