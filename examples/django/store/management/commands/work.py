import signal
import threading
import time

from django.core.management.base import BaseCommand
from django.db.models import Count, Sum

from store.models import Item, Purchase, Report
from store.templatetags.money import euros


class Command(BaseCommand):
    help = "The worker: counts the purchases again and again, and leaves a report."

    def add_arguments(self, parser):
        parser.add_argument("--every", type=float, default=10, help="seconds between two reports (10)")
        parser.add_argument("--once", action="store_true", help="make one report and end")

    def handle(self, every, once, **options):
        stop = threading.Event()
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, lambda *_: stop.set())
        while True:
            began = time.monotonic()
            report = make_report()
            took = time.monotonic() - began
            self.say(f"report: {report.purchases} purchases, {euros(report.total)}, most of all {report.best_seller}, counted in {took:.3f} s")
            if once or stop.wait(every):
                break
        self.say("worker: done")

    def say(self, line):
        self.stdout.write(line)
        self.stdout.flush()  # a pipe is not a terminal: do not keep lines back


def make_report():
    sums = Purchase.objects.aggregate(purchases=Count("id"), total=Sum("total"))
    best = Item.objects.values("product__name").annotate(sold=Sum("count")).order_by("-sold", "product__name").first()
    report, _ = Report.objects.update_or_create(
        pk=1,
        defaults={"purchases": sums["purchases"], "total": sums["total"] or 0, "best_seller": best["product__name"] if best else ""},
    )
    return report
