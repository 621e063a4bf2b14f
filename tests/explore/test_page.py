"""The page in a real browser: click a token, move a slider, and nothing leaves this machine."""

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'knnstore[test]'")

pytestmark = pytest.mark.slow

# Without the network flags Chromium calls its makers, and a closed network refuses it many times over.
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1300,1200"
)
_SECONDS = 180


@pytest.fixture(scope="module")
def address(explorer):
    from knnstore.explore.serve import HOST, make_app, make_server, open_port

    listening = open_port(0)
    server = make_server(make_app(explorer))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait(lambda: server.started)
    assert listening.getsockname()[0] == HOST == "127.0.0.1"
    yield f"http://{HOST}:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs Chromium and its driver (Debian: apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in _FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser, address):
    """The page as it opens: no test finds it as another one left it."""
    browser.get(address)
    wait(lambda: find(browser, "#tokens .tok"))
    return browser


def find(page, selector):
    return page.find_elements("css selector", selector)


def read(page, selector):
    return page.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def wait(done):
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if result := done():
            return result
        time.sleep(0.1)
    raise AssertionError(f"still not so after {_SECONDS} seconds")


def press(page, selector, keys):
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        find(page, f"{selector} input[type=range]")[0].send_keys(getattr(Keys, key))


def test_the_page_opens_on_an_example_coloured_by_gain(page, explorer):
    scored = explorer.analysed(explorer.example)
    assert len(find(page, "#tokens .tok")) == len(scored.ids)
    assert find(page, "#tokens .tok.up")
    assert find(page, "#tokens .tok.down")
    assert float(read(page, "#ppl-lm").replace(",", "")) > 1


@pytest.mark.parametrize("slider", ["#lambda", "#temperature", "#k"])
def test_a_slider_moves_the_perplexity_at_once(page, slider):
    before, alone = read(page, "#ppl-mix"), read(page, "#ppl-lm")
    press(page, slider, ["ARROW_LEFT"] * 9)
    wait(lambda: read(page, "#ppl-mix") != before)
    assert read(page, "#ppl-lm") == alone


def test_a_weight_of_nothing_is_the_lm_alone(page):
    press(page, "#lambda", ["HOME"])
    wait(lambda: read(page, "#ppl-mix") == read(page, "#ppl-lm"))
    press(page, "#lambda", ["END"])
    wait(lambda: read(page, "#ppl-mix") != read(page, "#ppl-lm"))


def test_a_click_on_a_token_shows_its_choices_and_its_teachers(page):
    find(page, "#tokens .tok")[20].click()
    wait(lambda: find(page, "#detail .choice.mine"))
    assert len(find(page, "#detail .choice")) == 8
    wait(lambda: find(page, "#sources .neighbour"))
    assert "books/" in read(page, "#sources cite")
    assert find(page, "#tokens .tok.chosen")[0].get_attribute("data-i") == "20"
    press(page, "#lambda", ["END", "ARROW_LEFT"])  # what is shown of the token follows the sliders
    wait(lambda: "λ 0.98" in read(page, "#detail"))


def test_a_pasted_text_is_read_and_never_run(page):
    box = find(page, "#source textarea")[0]
    box.clear()
    box.send_keys("A <b>bold</b> ${1+1} {{x}} <img src=x onerror=\"document.title='run'\"> text")
    find(page, "#read")[0].click()
    wait(lambda: "bold" in read(page, "#tokens .text"))
    assert "${1+1} {{x}}" in read(page, "#tokens .text").replace("·", "")
    assert not find(page, "#tokens img, #tokens b, #sources img")
    assert page.title != "run"


def test_a_prompt_is_written_on_and_every_token_says_what_it_owes(page):
    next(tab for tab in find(page, "button[role=tab]") if tab.text == "Write").click()
    box = wait(lambda: [one for one in find(page, "#prompt textarea") if one.is_displayed()])[0]
    box.send_keys("The standard type")
    find(page, "#write")[0].click()
    wait(lambda: find(page, "#owed .choice"))
    assert read(page, "#written .prompt") == "The standard type"
    wait(lambda: len(find(page, "#written .tok.owed")) > 20)  # the text appears as it is written
    assert "from the store" in find(page, "#written .tok.owed")[0].get_attribute("title")
    assert "the LM" in read(page, "#owed")


def test_the_page_can_be_looked_at(page, tmp_path):
    picture = tmp_path / "page.png"
    assert page.save_screenshot(str(picture))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000


def test_nothing_was_asked_of_any_other_machine(page, address):
    asked = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(url.startswith(address) for url in asked)
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def test_another_name_for_this_machine_is_refused(address):
    request = urllib.request.Request(address, headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400
    error.value.close()


def test_a_port_that_is_taken_is_said():
    from knnstore.errors import UsageError
    from knnstore.explore.serve import open_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="port="):
            open_port(taken.getsockname()[1])
