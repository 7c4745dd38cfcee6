"""GET /ht/: whether this machine can work. 200, or 503 with what is wrong."""

import os
import uuid

from django.conf import settings
from django.core.cache import cache
from django.db import connection
from django.http import JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import figures

MEMORY_MB, DISK_MB = 16, 64  # with less than this the machine is not well


@never_cache
@require_safe
def health(request):
    checks = {"memory": memory, "disk": disk, "database": database, "cache": cached}
    report, well = {"machine": os.environ.get("FLY_MACHINE_ID", "local")}, True
    for name, check in checks.items():
        try:
            report[name] = check()
        except Exception as error:  # whatever it is, the report says so
            report[name], well = f"{type(error).__name__}: {error}", False
    return JsonResponse(report, status=200 if well else 503)


def memory():
    m = figures.memory()
    left = m["available_mb"] + m["swap_free_mb"]
    if left < MEMORY_MB:
        raise RuntimeError(f"{left} of {m['total_mb']} MB are left")
    return m


def disk():
    d = figures.disk(settings.DATA_DIR)
    if d["free_mb"] < DISK_MB:
        raise RuntimeError(f"{d['free_mb']} MB are free")
    return d


def database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return connection.vendor


def cached():
    key, value = "health-" + uuid.uuid4().hex, os.getpid()
    cache.set(key, value, 10)
    try:
        if cache.get(key) != value:
            raise RuntimeError("what was written could not be read")
    finally:
        cache.delete(key)
    return "ok"
