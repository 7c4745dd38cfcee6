import os
import tempfile
from pathlib import Path
from unittest import mock

from django.core.cache import cache
from django.db import connection
from django.test import TestCase

from health import figures

MEMINFO = "MemTotal: {} kB\nMemAvailable: {} kB\nSwapTotal: 524288 kB\nSwapFree: 524288 kB\n"


class HealthTests(TestCase):
    def get(self):
        return self.client.get("/ht/", HTTP_HOST="shop.localhost")

    def test_well(self):
        response = self.get()
        self.assertEqual(response.status_code, 200, response.content)
        report = response.json()
        self.assertEqual(report["database"], connection.vendor)
        self.assertGreater(report["memory"]["total_mb"], 0)
        self.assertGreater(report["disk"]["free_mb"], 0)

    def test_says_what_is_wrong(self):
        with mock.patch.object(connection, "cursor", side_effect=OSError("no route to the database")):
            response = self.get()
        self.assertEqual(response.status_code, 503)
        self.assertEqual(response.json()["database"], "OSError: no route to the database")
        with mock.patch.object(cache, "get", return_value=None):
            response = self.get()
        self.assertEqual((response.status_code, response.json()["cache"]), (503, "RuntimeError: what was written could not be read"))

    def test_full(self):
        with mock.patch.object(figures, "memory", return_value={"total_mb": 256, "available_mb": 5, "swap_free_mb": 0}):
            self.assertEqual(self.get().json()["memory"], "RuntimeError: 5 of 256 MB are left")
        with mock.patch.object(figures, "disk", return_value={"used_mb": 900, "free_mb": 3}):
            self.assertEqual(self.get().json()["disk"], "RuntimeError: 3 MB are free")


class FiguresTests(TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.proc = Path(directory.name)
        patches = mock.patch.object(figures, "PROC", self.proc), mock.patch.dict(os.environ, FLY_VM_MEMORY_MB="256")
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)

    def test_the_machines_own(self):
        (self.proc / "meminfo").write_text(MEMINFO.format(256 * 1024, 100 * 1024))
        want = {"total_mb": 256, "available_mb": 100, "swap_total_mb": 512, "swap_free_mb": 512}
        self.assertEqual(figures.memory(), want)

    def test_the_hosts_are_not_believed(self):
        (self.proc / "meminfo").write_text(MEMINFO.format(24 << 20, 20 << 20))
        for pid, pss in (("7", "Pss: 51200 kB\n"), ("8", "Rss: 9 kB\nPss: 20480 kB\n"), ("9", None)):
            (self.proc / pid).mkdir()
            if pss:
                (self.proc / pid / "smaps_rollup").write_text(pss)
        self.assertEqual(figures.memory()["total_mb"], 256)
        self.assertEqual(figures.memory()["available_mb"], 256 - 70)

    def test_disk(self):
        (self.proc / "dump").write_bytes(bytes(3 << 20))
        self.assertEqual(figures.disk(self.proc)["used_mb"], 3)
