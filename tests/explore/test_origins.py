"""Who may ask the page's server for what, by plain HTTP: no browser is needed."""

import http.client
import json
import socket
import threading

import pytest


@pytest.fixture(scope="module")
def app(explorer):
    from knnstore.explore.serve import make_app

    return make_app(explorer)


@pytest.fixture(scope="module")
def port(app):
    from knnstore.explore.serve import make_server, open_port

    listening = open_port(0)
    listening.listen()  # from now on a connection waits until it is answered
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port, path="/", method="GET", body=None, **headers):
    """Status and body of the answer; ``_`` in a header's name stands for a hyphen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Connection": "close"} | named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def routes(app):
    """Every path of an application and of those mounted in it."""
    for route in app.routes:
        if hasattr(route, "app") and hasattr(route.app, "routes"):
            yield from routes(route.app)
        if path := getattr(route, "path", ""):
            yield path


FOREIGN = [
    {"Origin": "http://attacker.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1:{port}"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:{port}"},  # of this machine, and not the name that was asked
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Referer": "http://attacker.example/page"},
    {"Referer": "http://127.0.0.1:{port}.attacker.example/"},
    {"Host": "attacker.example:{port}"},
    {"Host": "attacker.example:{port}", "Origin": "http://attacker.example:{port}"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_what_another_page_asks_for_is_refused_on_every_route(port, app, headers):
    headers = {name: value.format(port=port) for name, value in headers.items()}
    every = sorted(set(routes(app))) if headers == {"Origin": "null"} else ["/", "/gradio_api/upload"]
    for path in every:
        for method in ("GET", "POST"):
            assert ask(port, path, method, **headers)[0] in (400, 403), (method, path)


def test_the_page_itself_and_programs_of_this_machine_are_answered(port):
    own = {
        "Origin": f"http://127.0.0.1:{port}",
        "Sec_Fetch_Site": "same-origin",
        "Referer": f"http://127.0.0.1:{port}/",
    }
    for headers in ({}, own, {"Sec_Fetch_Site": "none"}, {"Host": f"localhost:{port}"}):
        status, page = ask(port, **headers)
        assert (status, b"knnstore explore" in page) == (200, True), headers
    assert ask(port, "/config", **own)[0] == 200


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/upload", "/gradio_api/upload?upload_id=x"])
def test_nobody_uploads_a_file(port, path):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\ndata\r\n--x--\r\n'
    assert ask(port, path, "POST", body, Content_Type="multipart/form-data; boundary=x")[0] == 403
    assert ask(port, path, "POST", b"data", Content_Type="text/plain")[0] == 403
    assert ask(port, "/gradio_api/queue/join", "POST", body, Content_Type=" Multipart/form-data; boundary=x")[0] == 403


def test_a_body_is_bounded_whether_it_says_its_length_or_not(port):
    from knnstore.explore.serve import _LARGEST_BODY

    large = json.dumps({"data": ["x" * _LARGEST_BODY]}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        told = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{told}Content-Length: {len(large)}\r\n\r\n".encode())
        assert connection.recv(16).startswith(b"HTTP/1.1 413")
    chunks = (large[at : at + 2**16] for at in range(0, len(large), 2**16))
    try:
        status = ask(port, "/gradio_api/queue/join", "POST", chunks, Content_Type="application/json")[0]
    except (ConnectionError, http.client.HTTPException):
        return  # the server hung up
    assert status >= 400


@pytest.mark.parametrize("origin", ["http://attacker.example", "null"])
def test_a_web_socket_of_another_page_is_refused(port, origin):
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert ask(port, "/gradio_api/queue/join", Origin=origin, **upgrade, **key)[0] == 403


def test_two_readers_and_a_writer_at_once_disturb_nobody(explorer):
    from knnstore.explore.analysis import analyse

    recipe = explorer.store.datastore.manifest.key
    mixed_by = explorer.start
    text, prompt = explorer.example, explorer.example[:80]

    def read():
        return analyse(explorer.store.lm, recipe, explorer.search, text, k=4, most_tokens=60).log_lm

    def write():
        return [token.token_id for token in explorer.write(prompt, 6, 0.0, mixed_by)]

    expected = [read(), read(), write()]
    results = [[], [], []]
    calls = [read, read, write]
    threads = [
        threading.Thread(target=lambda n=n: results[n].extend(calls[n]() for _ in range(4))) for n in range(len(calls))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[2] == [expected[2]] * 4
    for log_lm in (*results[0], *results[1]):
        assert log_lm == pytest.approx(expected[0], abs=1e-4)
    assert len(results[0]) == len(results[1]) == 4
