from django.urls import path

from . import views

app_name = "store"
urlpatterns = [
    path("", views.home, name="home"),
    path("purchases", views.purchases, name="purchases"),
    path("purchases/receipts", views.receipts, name="receipts"),
    path("purchases/<int:pk>", views.purchase, name="purchase"),
    path("purchases/<int:pk>/receipt", views.receipt, name="receipt"),
]
