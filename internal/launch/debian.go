package launch

import (
	"slices"
	"strings"
)

// distribution is a Python package that Debian 12 has.
type distribution struct {
	pypi, module    string // normalised name; what the source imports, "" does not tell
	debian, version string
}

// debian lists what Django projects use most, with the versions of Debian 12,
// which stay for its life.
var debian = []distribution{
	{"django", "django", "python3-django", "3.2.25"},
	{"argon2-cffi", "", "python3-argon2", "21.1.0"},
	{"asgiref", "", "python3-asgiref", "3.6.0"},
	{"bcrypt", "bcrypt", "python3-bcrypt", "3.2.2"},
	{"beautifulsoup4", "bs4", "python3-bs4", "4.11.2"},
	{"boto3", "boto3", "python3-boto3", "1.26.27"},
	{"celery", "celery", "python3-celery", "5.2.6"},
	{"channels", "channels", "python3-django-channels", "4.0.0"},
	{"cryptography", "cryptography", "python3-cryptography", "38.0.4"},
	{"daphne", "", "python3-daphne", "4.0.0"},
	{"dj-database-url", "dj_database_url", "python3-dj-database-url", "0.5.0"},
	{"django-allauth", "allauth", "python3-django-allauth", "0.51.0"},
	{"django-compressor", "compressor", "python3-django-compressor", "4.0"},
	{"django-cors-headers", "corsheaders", "python3-django-cors-headers", "3.14.0"},
	{"django-crispy-forms", "crispy_forms", "python3-django-crispy-forms", "1.14.0"},
	{"django-debug-toolbar", "debug_toolbar", "python3-django-debug-toolbar", "3.8.1"},
	{"django-environ", "environ", "python3-django-environ", "0.4.4"},
	{"django-extensions", "django_extensions", "python3-django-extensions", "3.2.1"},
	{"django-filter", "django_filters", "python3-django-filters", "23.1"},
	{"django-guardian", "guardian", "python3-django-guardian", "2.4.0"},
	{"django-health-check", "health_check", "python3-django-health-check", "3.17.0"},
	{"django-import-export", "import_export", "python3-django-import-export", "3.0.2"},
	{"django-mptt", "mptt", "python3-django-mptt", "0.13.2"},
	{"django-polymorphic", "polymorphic", "python3-django-polymorphic", "3.1"},
	{"django-q", "django_q", "python3-django-q", "1.3.9"},
	{"django-redis", "django_redis", "python3-django-redis", "5.2.0"},
	{"django-reversion", "reversion", "python3-django-reversion", "5.0.4"},
	{"django-rq", "django_rq", "python3-django-rq", "2.7.0"},
	{"django-storages", "storages", "python3-django-storages", "1.13.2"},
	{"django-tables2", "django_tables2", "python3-django-tables2", "2.4.1"},
	{"django-taggit", "taggit", "python3-django-taggit", "3.1.0"},
	{"django-treebeard", "treebeard", "python3-django-treebeard", "4.6.1"},
	{"djangorestframework", "rest_framework", "python3-djangorestframework", "3.14.0"},
	{"flask", "flask", "python3-flask", "2.2.2"},
	{"gunicorn", "", "gunicorn", "20.1.0"},
	{"httpx", "httpx", "python3-httpx", "0.23.3"},
	{"jinja2", "jinja2", "python3-jinja2", "3.1.2"},
	{"lxml", "lxml", "python3-lxml", "4.9.2"},
	{"markdown", "markdown", "python3-markdown", "3.4.1"},
	{"mysqlclient", "MySQLdb", "python3-mysqldb", "1.4.6"},
	{"numpy", "numpy", "python3-numpy", "1.24.2"},
	{"openpyxl", "openpyxl", "python3-openpyxl", "3.0.9"},
	{"pandas", "pandas", "python3-pandas", "1.5.3"},
	{"pillow", "PIL", "python3-pil", "9.4.0"},
	{"psycopg", "psycopg", "python3-psycopg", "3.1.7"},
	{"psycopg2", "psycopg2", "python3-psycopg2", "2.9.5"},
	{"psycopg2-binary", "", "python3-psycopg2", "2.9.5"},
	{"pyjwt", "jwt", "python3-jwt", "2.6.0"},
	{"pymysql", "pymysql", "python3-pymysql", "1.0.2"},
	{"python-dateutil", "dateutil", "python3-dateutil", "2.8.2"},
	{"python-decouple", "decouple", "python3-decouple", "3.6"},
	{"python-dotenv", "dotenv", "python3-dotenv", "0.21.0"},
	{"pytz", "pytz", "python3-tz", "2022.7.1"},
	{"pyyaml", "yaml", "python3-yaml", "6.0"},
	{"redis", "redis", "python3-redis", "4.3.4"},
	{"reportlab", "reportlab", "python3-reportlab", "3.6.12"},
	{"requests", "requests", "python3-requests", "2.28.1"},
	{"rq", "rq", "python3-rq", "1.13.0"},
	{"sentry-sdk", "sentry_sdk", "python3-sentry-sdk", "1.9.10"},
	{"sqlparse", "", "python3-sqlparse", "0.4.2"},
	{"stripe", "stripe", "python3-stripe", "5.0.0"},
	{"uvicorn", "", "python3-uvicorn", "0.17.6"},
	{"whitenoise", "whitenoise", "python3-whitenoise", "6.0.0"},
}

// debianPackages maps requirements onto Debian's packages; missing names the
// first that Debian does not have, or not in a version that would do.
func debianPackages(needs []requirement) (packages []string, missing string) {
	for _, r := range needs {
		i := slices.IndexFunc(debian, func(d distribution) bool { return d.pypi == r.name })
		switch {
		case r.opaque || i < 0:
			return nil, r.name
		case !satisfied(debian[i].version, r.specs):
			return nil, r.name + strings.Join(r.specs, ",") + " (it has " + debian[i].version + ")"
		}
		packages = append(packages, debian[i].debian)
	}
	slices.Sort(packages)
	return slices.Compact(packages), ""
}
