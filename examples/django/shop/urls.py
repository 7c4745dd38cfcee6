from django.urls import include, path

urlpatterns = [
    path("", include("store.urls")),
    path("ht/", include("health.urls")),
]
