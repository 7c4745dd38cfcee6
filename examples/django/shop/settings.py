"""Settings of the shop. What differs between places comes from the environment:

SECRET_KEY     required, a secret; the build uses a dummy
DATABASE_URL   postgres://user:password@host:port/name; unset: SQLite
ALLOWED_HOSTS  more host names, with commas between
DEBUG          "1" on a developer's own computer
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = BASE_DIR / "data"  # what a machine writes: its own, gone when it stops
DATA_DIR.mkdir(exist_ok=True)
DEBUG = os.environ.get("DEBUG") == "1"

try:
    SECRET_KEY = os.environ["SECRET_KEY"]
except KeyError:
    raise ImproperlyConfigured("Set SECRET_KEY: roost secrets set SECRET_KEY=$(openssl rand -hex 32)") from None

# <app>.localhost from outside, <app>.internal from neighbours.
ALLOWED_HOSTS = [".localhost", ".internal"]
ALLOWED_HOSTS += [h for h in os.environ.get("ALLOWED_HOSTS", "").split(",") if h]

INSTALLED_APPS = ["django.contrib.staticfiles", "store", "health"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "serverless.Middleware",  # before anything that works or opens the database
    "store.middleware.machine",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]

# These views run on a machine of their own, which sleeps when nobody asks:
# methods, and the name of a URL or a path in which * stands for anything.
SERVERLESS_ROUTES = [
    ("GET", "store:receipts"),
    ("GET", "/purchases/*/receipt"),
]


def database(url):
    """The database of a URL; without one SQLite, each machine its own."""
    if not url:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA_DIR / "store.sqlite3"}
    u = urlsplit(url)
    if u.scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured(f"DATABASE_URL: {u.scheme}:// is not postgres://")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(u.path.lstrip("/")),
        "USER": unquote(u.username or ""),
        "PASSWORD": unquote(u.password or ""),
        "HOST": u.hostname,
        "PORT": u.port or 5432,
        "CONN_MAX_AGE": 60,
    }


DATABASES = {"default": database(os.environ.get("DATABASE_URL"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Pages that are the same for everybody lie in the machine's own file system:
# its workers share them, and no request for one touches the database.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": DATA_DIR / "cache",
        "TIMEOUT": 300,
    }
}

# collectstatic gives every file a name with its hash, so that browsers keep it
# for ever; Roost serves them from the image ([[statics]] in fly.toml).
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "static"
STATICFILES_STORAGE = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
if DEBUG:
    STATICFILES_STORAGE = "django.contrib.staticfiles.storage.StaticFilesStorage"

USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

# TLS ends at Roost's proxy, which says so in this header.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}},
    "root": {"handlers": ["stdout"], "level": "INFO"},
    # Not in DEBUG: the reason of a refused request (DisallowedHost) is wanted.
    "loggers": {"django": {"handlers": ["stdout"], "level": "INFO", "propagate": False}},
}
