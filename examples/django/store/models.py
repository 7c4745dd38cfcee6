from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=80)
    group = models.CharField(max_length=40)
    price = models.PositiveIntegerField(help_text="in cents")

    class Meta:
        ordering = ["id"]

    def __str__(self):
        return self.name


class Purchase(models.Model):
    customer = models.CharField(max_length=80)
    city = models.CharField(max_length=80)
    at = models.DateTimeField()
    total = models.PositiveIntegerField(help_text="in cents")

    class Meta:
        ordering = ["-id"]

    def __str__(self):
        return f"Purchase {self.pk}"


class Item(models.Model):
    purchase = models.ForeignKey(Purchase, models.CASCADE, related_name="items")
    product = models.ForeignKey(Product, models.PROTECT)
    count = models.PositiveIntegerField()
    price = models.PositiveIntegerField(help_text="of one, in cents, when it was bought")

    class Meta:
        ordering = ["id"]

    @property
    def amount(self):
        return self.count * self.price


class Report(models.Model):
    """What the worker found when it last looked at the purchases."""

    at = models.DateTimeField(auto_now=True)
    purchases = models.PositiveIntegerField()
    total = models.PositiveBigIntegerField(help_text="in cents")
    best_seller = models.CharField(max_length=80)
