import io
import tempfile
from unittest import mock

from django.core.management import call_command
from django.test import TestCase, override_settings

from store.models import Item, Purchase, Report


class StoreTests(TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        cache = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": directory.name}}
        settings = override_settings(
            CACHES=cache, STATICFILES_STORAGE="django.contrib.staticfiles.storage.StaticFilesStorage", ALLOWED_HOSTS=["shop.localhost"]
        )
        settings.enable()
        self.addCleanup(settings.disable)
        self.client.defaults["HTTP_HOST"] = "shop.localhost"

    def test_filled_always_the_same(self):
        self.assertEqual(Purchase.objects.count(), 2400)
        seventh = Purchase.objects.get(pk=Purchase.objects.order_by("id")[6].pk)
        self.assertEqual(sum(i.amount for i in seventh.items.all()), seventh.total)
        self.assertEqual(sum(Purchase.objects.values_list("total", flat=True)), 66703860)

    def test_landing_page_is_served_from_the_file_system(self):
        self.assertContains(self.client.get("/"), "Walnut egg cup")
        with self.assertNumQueries(0):
            self.assertContains(self.client.get("/"), "Walnut egg cup")

    def test_purchases(self):
        self.assertContains(self.client.get("/purchases?page=2"), "Page 2 of 96")
        purchase = Purchase.objects.first()
        self.assertContains(self.client.get(f"/purchases/{purchase.pk}"), purchase.customer)
        self.assertEqual(self.client.get("/purchases/999999").status_code, 404)

    def test_receipts(self):
        pk = Purchase.objects.first().pk
        for path in (f"/purchases/{pk}/receipt", "/purchases/receipts"):
            response = self.client.get(path)
            self.assertEqual(response["Content-Type"], "application/pdf")
            self.assertTrue(b"".join(response).startswith(b"%PDF-"))
        self.assertEqual(self.client.get("/purchases/999999/receipt").status_code, 404)
        self.assertEqual(self.client.post("/purchases/receipts").status_code, 405)

    def test_worker_reports(self):
        out = io.StringIO()
        call_command("work", once=True, stdout=out)
        self.assertIn("2400 purchases, EUR 667038.60", out.getvalue())
        best = Report.objects.get().best_seller
        self.assertTrue(Item.objects.filter(product__name=best).exists())
        self.assertContains(self.client.get("/purchases"), best)

    def test_says_which_machine_answered(self):
        with mock.patch("store.middleware.MACHINE", "148e1234c56789"):
            self.assertEqual(self.client.get("/")["Store-Machine"], "148e1234c56789")
