"""Runs some views on a machine of their own, which sleeps until one is asked for.

    MIDDLEWARE = [..., "serverless.Middleware", ...]
    SERVERLESS_ROUTES = [
        ("GET", "store:receipts"),          # methods, and the name of a URL
        ("GET", "/purchases/*/receipt"),    # or a path; * stands for anything
    ]

On an app machine a request for one of these is answered "fly-replay:
instance=<id>": the proxy takes it to the serverless machine, waking it if it
sleeps. That machine is found by its name, "serverless-" and 12 digits of the
image's digest, or made from the app machine's own config: each version of the
app has its own, and however many processes ask first, there is one, since the
Machines API takes a name only once. On the serverless machine, which runs the
same program, everything else is sent back with "elsewhere=true".

When that cannot work the app machine serves the request itself, and says why
in the header Serverless-Fallback and in the log.

It needs FLY_APP_NAME, FLY_MACHINE_ID and FLY_IMAGE_REF, which every machine
has, and a token in FLY_API_TOKEN: `roost token create app`. Settings, all
optional:

SERVERLESS_IDLE_STOP       how long the machine idles before it is suspended ("5m")
SERVERLESS_SUSPEND_FOR     how long it then stays so before it is stopped ("24h")
SERVERLESS_GUEST           its size, if not the app machine's:
                           {"cpu_kind": "shared", "cpus": 2, "memory_mb": 1024}
SERVERLESS_REPLAY_TIMEOUT  how long the proxy may take to reach it ("30s")
"""

from .middleware import Middleware

__all__ = ["Middleware"]
