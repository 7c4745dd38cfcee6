import os

bind = "0.0.0.0:" + os.environ.get("PORT", "8080")
workers = int(os.environ.get("WEB_CONCURRENCY", 2))
worker_tmp_dir = "/dev/shm"  # heartbeats: never wait for a disk
keepalive = 75  # longer than the proxy keeps an idle connection, for threaded workers
accesslog = None  # the proxy writes one
