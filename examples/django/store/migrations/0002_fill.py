"""Fills an empty shop: always with the same products and purchases."""

import random
from datetime import datetime, timedelta, timezone

from django.db import migrations

PURCHASES = 2400
LONG_EVERY = 100  # every so many-th purchase has many lines

THINGS = {
    "Kitchen": ["bowl", "chopping board", "salt box", "spoon"],
    "Desk": ["lamp", "letter tray", "pen stand", "bookend"],
    "Nest": ["bird house", "feeder", "perch", "egg cup"],
}
WOODS = ["Ash", "Beech", "Cherry", "Oak", "Walnut"]
FIRST = ["Ada", "Alan", "Barbara", "Dennis", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Margaret", "Radia", "Tony"]
LAST = ["Abbott", "Berg", "Carvalho", "Dvorak", "Eriksen", "Fontaine", "Garcia", "Haas", "Ito", "Jansen", "Kaur"]
CITIES = ["Amsterdam", "Berlin", "Lisbon", "Lyon", "Oslo", "Prague", "Turin", "Vienna"]


def fill(apps, schema_editor):
    Product, Purchase, Item = (apps.get_model("store", name) for name in ("Product", "Purchase", "Item"))
    Product.objects.bulk_create(
        Product(name=f"{wood} {thing}", group=group, price=890 + 410 * w + 730 * t + 1150 * g)
        for g, (group, things) in enumerate(THINGS.items())
        for t, thing in enumerate(things)
        for w, wood in enumerate(WOODS)
    )
    products = list(Product.objects.order_by("id"))
    rng = random.Random(2026)
    day = datetime(2026, 1, 1, 8, tzinfo=timezone.utc)
    purchases, lines = [], []
    for n in range(1, PURCHASES + 1):
        bought = [
            (rng.choice(products), rng.randint(1, 3))
            for _ in range(60 if n % LONG_EVERY == 0 else rng.randint(1, 5))
        ]
        lines.append(bought)
        purchases.append(
            Purchase(
                customer=f"{rng.choice(FIRST)} {rng.choice(LAST)}",
                city=rng.choice(CITIES),
                at=day + timedelta(hours=3 * n),
                total=sum(product.price * count for product, count in bought),
            )
        )
    Purchase.objects.bulk_create(purchases, batch_size=200)
    Item.objects.bulk_create(
        (
            Item(purchase=purchase, product=product, count=count, price=product.price)
            for purchase, bought in zip(Purchase.objects.order_by("id"), lines)
            for product, count in bought
        ),
        batch_size=200,
    )


class Migration(migrations.Migration):
    dependencies = [("store", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
