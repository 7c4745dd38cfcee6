"""Finds or makes the one serverless machine of this process's image."""

import logging
import threading
import time

from .api import Error

log = logging.getLogger("serverless")

PREFIX, DIGITS = "serverless-", 12
FRESH = 0.25  # seconds that a machine which was looked at is used unseen
LOOK = 0.1  # seconds that a second look may take: the proxy reaches it anyway
ALONE = 5  # seconds that the API is left alone after it failed
PATIENCE = 10  # seconds that a request waits for another one's search
SWEEP_FIRST, SWEEP_MOST = 2, 60  # seconds between two looks at older machines
GONE = ("destroying", "destroyed")
RELEASE = "serverless_release"  # metadata: the release that the machine was made for
BROKEN = ("failed", "launch_failed")
IDLE = ("suspended", "stopped", "created")


class Unavailable(Exception):
    """There is no serverless machine; the text is for the client."""


class Pool:
    """One for each process. machine() may be called by several threads."""

    def __init__(self, api, machine, image, change=lambda config: None):
        self.api = api
        self.self_id = machine
        self.image = image
        self.change = change
        self.lock = threading.Lock()  # guards what follows; held by the one that searches
        self.id = None
        self.name = None
        self.seen = 0.0
        self.failure = None
        self.failed = 0.0
        self.sweeping = False

    def machine(self):
        """Returns the machine's id, or raises Unavailable."""
        if not self.lock.acquire(timeout=PATIENCE):
            raise Unavailable("the serverless machine is still being made")
        try:
            now = time.monotonic()
            alone = self.failure and now - self.failed < ALONE
            if self.id and (alone or now - self.seen < FRESH):
                return self.id
            if alone:
                raise Unavailable(self.failure)
            try:
                if not (self.id and self.still_there()):
                    self.id = self.ensure()
                self.failure, self.seen = None, time.monotonic()
            except Error as error:
                self.failure, self.failed = reason(error), time.monotonic()
                log.warning("the machines API: %s", error)
                if not self.id:  # else the question failed, not the machine
                    raise Unavailable(self.failure) from error
            return self.id
        finally:
            self.lock.release()

    def forget(self):
        """Makes the next request search again: the machine was not reached."""
        with self.lock:
            self.id = None

    def still_there(self):
        try:
            found = self.api.get(self.id, timeout=LOOK)
        except Error as error:
            if error.status == 404:
                return False
            raise
        return found["state"] not in GONE + BROKEN

    def ensure(self):
        """Finds the machine, or makes it."""
        self.name = PREFIX + self.digest()[:DIGITS]
        mine = None
        for m in self.api.list():
            if m["state"] in GONE or not m["name"].startswith(PREFIX):
                continue
            if m["name"] != self.name:
                self.sweep()
            elif m["state"] in BROKEN:  # it will never run, and holds the name
                self.api.destroy(m["id"], force=True)
            else:
                mine = m
        if not mine:
            return self.create()
        self.renew(mine)
        return mine["id"]

    def renew(self, machine):
        """Gives the machine the config and the secrets of a newer release, if it
        was made for an older one of the same image."""
        me = self.api.get(self.self_id)
        if release(me, "fly_release_version") <= release(machine, RELEASE):
            return
        try:
            self.api.update(machine["id"], config=self.config(me), current_version=machine["instance_id"])
            log.info("updated machine %s to release %d", machine["id"], release(me, "fly_release_version"))
        except Error as error:
            if error.status not in (404, 409, 412):  # another process is at it
                raise

    def digest(self):
        _, _, digest = self.image.partition("@sha256:")
        if not digest:
            digest = self.api.get(self.self_id)["image_ref"]["digest"].partition(":")[2]
        return digest

    def create(self):
        """Makes the machine. Of several processes that try, one succeeds; the
        others read what it made."""
        me = self.api.get(self.self_id)
        try:
            made = self.api.create(name=self.name, region=me["region"], config=self.config(me))
            log.info("made machine %s, %s", made["id"], self.name)
            return made["id"]
        except Error as error:
            if error.status != 409:
                raise
        for _ in range(100):
            for m in self.api.list():
                if m["name"] == self.name and m["state"] not in GONE:
                    return m["id"]
            time.sleep(0.05)  # its name is taken, but it cannot be read yet
        raise Error(409, f"the name {self.name} is taken by a machine that is not listed")

    def config(self, me):
        config = asleep(me["config"], self.image)
        if release(me, "fly_release_version"):
            config["metadata"][RELEASE] = str(release(me, "fly_release_version"))
        self.change(config)
        return config

    def sweep(self):
        """Starts to remove older machines, unless that is under way."""
        if not self.sweeping:
            self.sweeping = True
            threading.Thread(target=self.sweep_all, daemon=True).start()

    def sweep_all(self):
        pause = SWEEP_FIRST
        while True:
            try:
                if not self.sweep_once():
                    break
            except Error as error:
                log.warning("older serverless machines not removed: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, SWEEP_MOST)
        self.sweeping = False

    def sweep_once(self):
        """Removes serverless machines whose image no app machine runs any more,
        if they are idle; says whether some are left."""
        alive = [m for m in self.api.list() if m["state"] not in GONE]
        wanted = {
            PREFIX + m["image_ref"]["digest"].partition(":")[2][:DIGITS] for m in alive if not m["name"].startswith(PREFIX)
        }
        left = False
        for m in alive:
            if not m["name"].startswith(PREFIX) or m["name"] == self.name:
                continue
            if m["name"] in wanted or m["state"] not in IDLE + BROKEN:
                left = True  # until its version is gone and its last request served
                continue
            try:
                self.api.destroy(m["id"], force=m["state"] in BROKEN)
                log.info("removed machine %s, %s", m["id"], m["name"])
            except Error as error:
                left = left or error.status != 404  # it was woken meanwhile
        return left


def asleep(config, image):
    """The app machine's config for a machine that sleeps unless it is needed."""
    if not config.get("services"):
        raise Unavailable("this machine has no services, so the proxy could not reach another one like it")
    config = dict(config)
    config["image"] = image or config["image"]
    config["env"] = {**config.get("env", {}), "SERVERLESS_MACHINE": "1"}
    config["metadata"] = {"fly_process_group": "serverless"}  # none of the app's own
    config["services"] = [
        {**service, "autostop": "suspend", "autostart": True, "min_machines_running": 0} for service in config["services"]
    ]
    for key in ("mounts", "standbys", "schedule", "auto_destroy", "disable_machine_autostart"):
        config.pop(key, None)
    return config


def release(machine, key):
    """The version of the release in a machine's metadata, 0 if there is none."""
    value = (machine["config"].get("metadata") or {}).get(key, "")
    return int(value) if value.isdecimal() else 0


def reason(error):
    """What the client may know of an API error."""
    if error.status == 0:
        return "the machines API does not answer"
    if error.status in (401, 403):
        return "the machines API refuses the app's token"
    if error.status >= 500:
        return "the machines API is unavailable"
    return "the serverless machine could not be made"
