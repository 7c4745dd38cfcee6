import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

from django.http import HttpResponse
from django.test import RequestFactory, SimpleTestCase, override_settings

from serverless import Middleware, pool
from serverless.pool import Pool

DIGEST, OLD = "a" * 64, "b" * 64
NAME = "serverless-" + "a" * 12
PROXY = {"HTTP_FLY_REQUEST_ID": "01J0-loc", "HTTP_HOST": "shop.localhost"}
SERVICE = {"internal_port": 8080, "autostop": "off", "min_machines_running": 1, "ports": [{"port": 80}]}


class FakeAPI(ThreadingHTTPServer):
    """Enough of the Machines API, with names that are taken only once."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.calls = 0
        self.updates = []
        self.broken = False  # every call fails
        self.machines = {}
        self.add("app1", "web-1", config={"image": "shop", "env": {"A": "1"}, "services": [SERVICE], "mounts": [{}]})

    def add(self, id, name, digest=DIGEST, state="started", config=None):
        machine = {"id": id, "name": name, "region": "loc", "state": state, "config": config}
        machine.update(instance_id="1", image_ref={"digest": "sha256:" + digest})
        self.machines[id] = machine
        return machine

    def answer(self, method, parts, body):
        self.calls += 1
        if self.broken:
            return 503, {"error": "try again later"}
        if method == "POST" and parts:
            machine = self.machines[parts[0]]
            if body["current_version"] != machine["instance_id"]:
                return 409, {"error": "it has changed"}
            self.updates.append(parts[0])
            machine.update(config=body["config"], instance_id=machine["instance_id"] + "+")
            return 200, machine
        if method == "POST":
            if any(m["name"] == body["name"] for m in self.machines.values()):
                return 409, {"error": "name taken"}
            return 200, self.add(f"made{len(self.machines)}", body["name"], config=body["config"])
        if not parts:
            return 200, list(self.machines.values())
        if parts[0] not in self.machines:
            return 404, {"error": "machine not found"}
        if method == "DELETE":
            del self.machines[parts[0]]
            return 200, {"ok": True}
        return 200, self.machines[parts[0]]


class Handler(BaseHTTPRequestHandler):
    def do(self):
        parts = self.path.partition("?")[0].split("/")[5:]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.headers["Authorization"] != "Bearer secret":
            status, value = 401, {"error": "token"}
        else:
            with self.server.lock:
                status, value = self.server.answer(self.command, parts, body)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do

    def log_message(self, *_):
        pass


@override_settings(ROOT_URLCONF="shop.urls", SERVERLESS_ROUTES=[("GET", "store:receipts"), ("POST", "/purchases/*/receipt")])
class MiddlewareTests(SimpleTestCase):
    def setUp(self):
        self.api = FakeAPI()
        threading.Thread(target=self.api.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(self.api.server_close)
        self.addCleanup(self.api.shutdown)
        # A busy computer is no failure: no time runs out by itself.
        patient = mock.patch.multiple(pool, LOOK=600, PATIENCE=600, ALONE=600)
        patient.start()
        self.addCleanup(patient.stop)

    @contextmanager
    def on(self, machine="app1", **env):
        """A process of the app on a machine."""
        env = {
            "FLY_APP_NAME": "shop",
            "FLY_MACHINE_ID": machine,
            "FLY_IMAGE_REF": "registry/shop@sha256:" + DIGEST,
            "FLY_FLAPS_BASE_URL": f"http://127.0.0.1:{self.api.server_port}",
            "FLY_API_TOKEN": "secret",
            **env,
        }
        with mock.patch.dict("os.environ", env):
            yield Middleware(lambda request: HttpResponse("local"))

    def ask(self, app, path="/purchases/receipts", method="get", **headers):
        return app(getattr(RequestFactory(), method)(path, **{**PROXY, **headers}))

    def assertReplayed(self, response, to):
        self.assertIn(f"instance={to};", response.get("Fly-Replay", ""), response.headers)

    def assertLocal(self, response, why=None):
        self.assertEqual(response.content, b"local")
        if why is None:
            self.assertNotIn("Serverless-Fallback", response)
        else:
            self.assertIn(why, response["Serverless-Fallback"])

    def test_made_once_then_found(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(app), "made1")
            self.assertReplayed(self.ask(app, "/purchases/7/receipt", "post"), "made1")
        made = self.api.machines["made1"]
        self.assertEqual(made["name"], NAME)
        config = made["config"]
        self.assertEqual(config["image"], "registry/shop@sha256:" + DIGEST)
        self.assertEqual(config["env"], {"A": "1", "SERVERLESS_MACHINE": "1"})
        self.assertEqual(config["metadata"], {"fly_process_group": "serverless"})
        self.assertEqual(config["services"], [{**SERVICE, "autostop": "suspend", "autostart": True, "min_machines_running": 0}])
        self.assertNotIn("mounts", config)
        with self.on() as another:
            self.assertReplayed(self.ask(another), "made1")

    @override_settings(SERVERLESS_IDLE_STOP="90s", SERVERLESS_GUEST={"memory_mb": 1024})
    def test_settings(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"):
            self.ask(app)
        config = self.api.machines["made1"]["config"]
        self.assertEqual((config["guest"], config["services"][0]["auto_stop_after"]), ({"memory_mb": 1024}, "90s"))

    def test_many_at_once_make_one(self):
        answers = []
        with self.on() as one, self.on() as two, self.assertLogs("serverless", "INFO"):
            threads = [threading.Thread(target=lambda app=app: answers.append(self.ask(app))) for app in (one, two) * 20]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        self.assertEqual({a["Fly-Replay"].partition(";")[0] for a in answers}, {"instance=made1"})
        self.assertEqual(len(self.api.machines), 2)

    def test_not_asked_again_for_a_moment(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"), mock.patch.object(pool, "FRESH", 60):
            self.ask(app)
            calls = self.api.calls
            self.assertReplayed(self.ask(app), "made1")
        self.assertEqual(self.api.calls, calls)

    def test_removed_machine_is_replaced(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"), mock.patch.object(pool, "FRESH", 0):
            self.ask(app)
            del self.api.machines["made1"]
            self.api.add("other", "web-2")
            self.assertReplayed(self.ask(app), "made2")

    def test_a_newer_release_of_the_same_image(self):
        """New secrets, another fly.toml: the machine that is there gets them."""
        release = self.api.machines["app1"]["config"].setdefault("metadata", {})
        release["fly_release_version"] = "9"
        with self.on() as app, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(app), "made1")
        release["fly_release_version"] = "10"
        self.api.machines["app1"]["config"]["env"]["A"] = "2"
        with self.on() as new, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(new), "made1")
        config = self.api.machines["made1"]["config"]
        self.assertEqual(config["metadata"], {"fly_process_group": "serverless", "serverless_release": "10"})
        self.assertEqual(config["env"], {"A": "2", "SERVERLESS_MACHINE": "1"})
        release["fly_release_version"] = "9"  # an app machine that is still to be replaced
        for _ in range(2):
            with self.on() as old:
                self.assertReplayed(self.ask(old), "made1")
        self.assertEqual(self.api.updates, ["made1"])

    def test_broken_machine_is_replaced(self):
        self.api.add("dead", NAME, state="failed")
        with self.on() as app, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(app), "made1")
        self.assertNotIn("dead", self.api.machines)

    def test_api_down_after_the_machine_is_known(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"), mock.patch.object(pool, "FRESH", 0):
            self.ask(app)
            self.api.broken = True
            self.assertReplayed(self.ask(app), "made1")  # the proxy reaches it all the same

    def test_other_requests_stay(self):
        with self.on() as app:
            self.assertLocal(self.ask(app, "/"))
            self.assertLocal(self.ask(app, "/nothing"))
            self.assertLocal(self.ask(app, method="post"))
            self.assertLocal(self.ask(app, "/purchases/7/receipt"))
            # Not through the proxy: a health check.
            self.assertLocal(app(RequestFactory().get("/purchases/receipts")))
        self.assertEqual(self.api.calls, 0)

    def test_head_is_like_get(self):
        with self.on() as app, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(app, method="head"), "made1")

    def test_fallbacks(self):
        failed = "instance=x;app=shop;reason=timeout;elapsed_ms=30000"
        for why, env, headers in (
            ("does not answer", {"FLY_FLAPS_BASE_URL": "http://127.0.0.1:1"}, {}),
            ("refuses the app's token", {"FLY_API_TOKEN": "wrong"}, {}),
            ("replay failed: timeout", {}, {"HTTP_FLY_REPLAY_FAILED": failed}),
            ("came back", {}, {"HTTP_FLY_REPLAY_SRC": "instance=x;region=loc;state=serverless"}),
            ("too large", {}, {"CONTENT_LENGTH": str(11 << 20)}),
            ("not on a machine", {"FLY_APP_NAME": ""}, {}),
        ):
            with self.subTest(why), self.on(**env) as app, self.assertLogs("serverless", "WARNING") as log:
                self.assertLocal(self.ask(app, **headers), why)
                self.assertIn("served locally", log.output[-1])

    def test_api_is_left_alone_after_a_failure(self):
        self.api.broken = True
        with self.on() as app, self.assertLogs("serverless", "WARNING"):
            self.assertLocal(self.ask(app), "is unavailable")
            calls = self.api.calls
            self.assertLocal(self.ask(app), "is unavailable")
        self.assertEqual(self.api.calls, calls)

    def test_no_services(self):
        self.api.machines["app1"]["config"]["services"] = []
        with self.on() as app, self.assertLogs("serverless", "WARNING"):
            self.assertLocal(self.ask(app), "no services")

    def test_on_the_serverless_machine(self):
        with self.on("s1", SERVERLESS_MACHINE="1") as app:
            receipt = self.ask(app)
            self.assertLocal(receipt)
            self.assertEqual(receipt["Serverless-Machine"], "s1")
            for path in ("/", "/nothing"):
                self.assertEqual(self.ask(app, path)["Fly-Replay"], "elsewhere=true;fallback=prefer_self")
            self.assertLocal(app(RequestFactory().get("/ht/")))
            with self.assertLogs("serverless", "WARNING"):
                self.assertLocal(self.ask(app, "/", HTTP_FLY_REPLAY_FAILED="reason=none"), "no app machine took it")

    def test_older_machines_are_removed_when_idle_and_unused(self):
        self.api.add("old", "serverless-" + "b" * 12, OLD, state="suspended")
        self.api.add("busy", "serverless-" + "c" * 12, "c" * 64)
        self.api.add("web2", "web-2", "d" * 64)
        self.api.add("used", "serverless-" + "d" * 12, "d" * 64, state="stopped")
        with self.on() as app:
            sweeper = app.pool
            sweeper.name = NAME
            with self.assertLogs("serverless", "INFO"):
                self.assertTrue(sweeper.sweep_once())
        self.assertEqual(set(self.api.machines), {"app1", "busy", "web2", "used"})

    def test_digest_without_image_ref(self):
        with self.on(FLY_IMAGE_REF="") as app, self.assertLogs("serverless", "INFO"):
            self.assertReplayed(self.ask(app), "made1")
        self.assertEqual(self.api.machines["made1"]["name"], NAME)
        self.assertIsInstance(app.pool, Pool)
