from django.conf import settings

settings.configure(
    SECRET_KEY="measured, not served",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="shop",
    INSTALLED_APPS=[
        "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware", "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
    TEMPLATES=[{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"context_processors": [
            "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]},
    }],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/tmp/shop.sqlite3"}},
    STATIC_URL="/static/",
    USE_TZ=True,
)

from django.core.wsgi import get_wsgi_application  # noqa: E402

application = get_wsgi_application()

from django.contrib import admin  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.template import engines  # noqa: E402
from django.urls import path  # noqa: E402

PAGE = """<html><title>Shop</title><ul>{% for p in products %}<li>{{ p.name }}: {{ p.price|floatformat:2 }}</li>{% endfor %}</ul></html>"""


def index(request):
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    products = [{"name": f"Product {n}", "price": n * 1.5} for n in range(20)]
    return HttpResponse(engines["django"].from_string(PAGE).render({"products": products}, request))


urlpatterns = [path("", index), path("admin/", admin.site.urls)]
