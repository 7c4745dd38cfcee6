import logging
import os
import re

from django.conf import settings
from django.http import HttpResponse
from django.urls import Resolver404, resolve

from .api import API
from .pool import Pool, Unavailable

log = logging.getLogger("serverless")

MAX_BODY = 10 << 20  # what the proxy keeps of a request for a replay


class Middleware:
    def __init__(self, get_response):
        self.get_response = get_response
        self.machine = os.environ.get("FLY_MACHINE_ID", "")
        self.here = bool(os.environ.get("SERVERLESS_MACHINE"))  # is this the serverless machine?
        self.routes = [Route(*route) for route in settings.SERVERLESS_ROUTES]
        self.timeout = getattr(settings, "SERVERLESS_REPLAY_TIMEOUT", "30s")
        self.pool = None
        app = os.environ.get("FLY_APP_NAME")
        if app and self.machine and not self.here:
            self.pool = Pool(API(app), self.machine, os.environ.get("FLY_IMAGE_REF", ""), change)

    def __call__(self, request):
        if "Fly-Request-Id" not in request.headers:
            # Not from the proxy, which alone replays: a health check, or a
            # neighbour by its private name.
            return self.get_response(request)
        matches = any(route.matches(request) for route in self.routes)
        if self.here and matches:
            response = self.get_response(request)
            response["Serverless-Machine"] = self.machine
            return response
        if self.here:
            return self.send_back(request)
        if matches:
            return self.send_over(request)
        return self.get_response(request)

    def send_back(self, request):
        """An app machine answers what has no business here."""
        failed = request.headers.get("Fly-Replay-Failed")
        if failed:
            return self.fallback(request, "no app machine took it: " + failed_reason(failed))
        return replay("elsewhere=true;fallback=prefer_self")

    def send_over(self, request):
        """The serverless machine answers."""
        failed = request.headers.get("Fly-Replay-Failed")
        if failed:
            if self.pool:
                self.pool.forget()
            return self.fallback(request, "replay failed: " + failed_reason(failed))
        if not self.pool:
            return self.fallback(request, "not on a machine")
        if "state=serverless" in request.headers.get("Fly-Replay-Src", ""):
            return self.fallback(request, "the replay came back")
        if int(request.headers.get("Content-Length") or 0) > MAX_BODY:
            return self.fallback(request, "the body is too large to be replayed")
        try:
            machine = self.pool.machine()
        except Unavailable as error:
            return self.fallback(request, str(error))
        return replay(f"instance={machine};timeout={self.timeout};fallback=prefer_self;state=serverless")

    def fallback(self, request, why):
        log.warning("%s %s served locally instead of on the serverless machine: %s", request.method, request.path, why)
        response = self.get_response(request)
        response["Serverless-Fallback"] = "".join(c if " " <= c <= "~" else " " for c in why)[:200]
        return response


def replay(value):
    """An answer for the proxy, which swallows it and sends the request there."""
    response = HttpResponse("The proxy takes this request to another machine.\n", content_type="text/plain", status=307)
    response["Fly-Replay"] = value
    return response


def failed_reason(header):
    """The reason in a Fly-Replay-Failed header."""
    fields = dict(field.strip().partition("=")[::2] for field in header.split(";"))
    return fields.get("reason", "no reason given")


def change(config):
    """What the settings want of the serverless machine."""
    guest = getattr(settings, "SERVERLESS_GUEST", None)
    if guest:
        config["guest"] = guest
    for service in config["services"]:
        for key, setting in (("auto_stop_after", "SERVERLESS_IDLE_STOP"), ("suspend_for", "SERVERLESS_SUSPEND_FOR")):
            value = getattr(settings, setting, None)
            if value:
                service[key] = value


class Route:
    """Methods, with commas between, and the name of a URL or a path in which *
    stands for anything. GET includes HEAD."""

    def __init__(self, methods, target):
        self.methods = set(methods.upper().split(","))
        if "GET" in self.methods:
            self.methods.add("HEAD")
        self.name, self.path = target, None
        if target.startswith("/"):
            self.path = re.compile(".*".join(re.escape(part) for part in target.split("*")))

    def matches(self, request):
        if request.method not in self.methods:
            return False
        if self.path:
            return self.path.fullmatch(request.path_info) is not None
        try:
            return resolve(request.path_info).view_name == self.name
        except Resolver404:
            return False
