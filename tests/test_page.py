"""The page of `bagpiper demo`: what its buttons do, without a browser and in one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

gr = pytest.importorskip("gradio")

from bagpiper_jax.cli import main  # noqa: E402
from bagpiper_jax.errors import UserError  # noqa: E402
from bagpiper_jax.inference.replies import Sound  # noqa: E402
from bagpiper_jax.inference.sampling import AUDIO, TEXT  # noqa: E402
from bagpiper_jax.inference.streaming import Delta  # noqa: E402
from bagpiper_jax.serving import page as page_lib  # noqa: E402

CORPUS = os.path.join(os.path.dirname(__file__), "..", "data", "mini")
EDITED = '"two four five nine"'


class Script:
    """A pipeline that answers as it is told, and remembers what it was asked."""

    def __init__(self, *pieces: str):
        self.sampling = {"text": TEXT, "audio": AUDIO}
        self.pieces, self.closed = pieces, False

    def listen(self, wav):
        return wav

    def stream(self, messages, **asked):
        self.messages, self.asked = messages, asked
        try:
            for piece in self.pieces:
                yield Delta(0, "text", piece)
        finally:
            self.closed = True

    def render(self, text, **asked):
        self.asked = asked
        if not text:
            raise UserError("there is no caption")
        return Sound.of(0.1 * np.sin(np.arange(8_000, dtype=np.float32) / 5), 16_000)


@pytest.fixture
def clip(tmp_path):
    path = str(tmp_path / "clip.wav")
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=22_050), 44_100)
    return path


def test_the_caption_grows_and_the_plan_stands_apart(clip):
    pipe = Script("<think>a bell", " first</think>", "We hear", " a bell.")
    steps = list(page_lib.Page(pipe).describe(clip, 0.5, 7))
    assert [caption for caption, _ in steps] == ["", "", "We hear", "We hear a bell."]
    plan = steps[-1][1]
    assert plan["value"] == "a bell first" and plan["visible"]
    assert pipe.messages[0].shape == (8_000,)  # at 16 kHz
    assert pipe.asked["modalities"] == ("text",) and pipe.asked["seed"] == 7
    settings = pipe.asked["sampling"]["text"]
    assert settings.temperature == 0.5 and settings.top_k == TEXT.top_k

    (_, plan), *_ = page_lib.Page(Script("a bell")).describe(clip, 0, 0)
    assert not plan["visible"]


def test_a_rendering_keeps_its_level_and_takes_its_settings():
    pipe = Script()
    (rate, samples), picture = page_lib.Page(pipe).render("a bell", 2.5, 0.7, 3)
    assert rate == 16_000 and samples.dtype == np.int16 and abs(samples.max() - 3276) < 2
    assert "data:image/png" in picture and "0.5 s" in picture
    assert (pipe.asked["sampling"].cfg, pipe.asked["sampling"].temperature) == (2.5, 0.7)
    assert pipe.asked["seed"] == 3


def test_a_clip_is_shown_as_soon_as_it_is_there(clip):
    page = page_lib.Page(Script())
    assert "The clip, 0.5 s" in page.look(clip)
    assert "<img" not in page.look(None)


@pytest.mark.parametrize(
    "name,wav,says",
    [
        ("silent.wav", np.zeros(16_000), "silent.wav is silent"),
        ("long.wav", np.ones(31 * 16_000) / 9, "longer than 30 s"),
        ("<b>.wav", b"this is no recording", r"&lt;b&gt;.wav cannot be read as audio: Format"),
        ("empty.wav", b"", "empty.wav is empty"),
        ("gone.wav", None, "the clip is gone"),
    ],
)
def test_a_bad_clip_is_told_in_one_message_that_hides_its_place(tmp_path, name, wav, says):
    path = str(tmp_path / name)
    if isinstance(wav, bytes):
        (tmp_path / name).write_bytes(wav)
    elif wav is not None:
        soundfile.write(path, wav, 16_000)
    page = page_lib.Page(Script("never"))
    for press in (lambda: page.look(path), lambda: list(page.describe(path, 0, 0))):
        with pytest.raises(gr.Error, match=says) as error:
            press()
        assert not error.value.print_exception and str(tmp_path) not in error.value.message


def test_what_is_missing_is_told(clip):
    page = page_lib.Page(Script("never"))
    with pytest.raises(gr.Error, match="no clip"):
        list(page.describe(None, 0, 0))
    with pytest.raises(gr.Error, match="no caption"):
        page.render(None, 3, 0, 0)
    with pytest.raises(gr.Error, match="the seed is missing"):
        page.render("a bell", 3, 0, None)


def test_a_page_that_is_closed_frees_the_engine(clip):
    pipe = Script("one", "two")
    page = page_lib.Page(pipe)
    answer = page.describe(clip, 0, 0)
    next(answer)
    assert page._engine.locked() and not pipe.closed
    answer.close()
    assert pipe.closed and not page._engine.locked()


def test_examples_are_scenes_of_the_corpus_where_there_is_one(tmp_path):
    examples = page_lib.make_examples(CORPUS, str(tmp_path))
    assert len(examples.clips) == 4 and all(len(c.split()) > 5 for c in examples.captions)
    for example in examples.clips:
        assert 0.5 < soundfile.info(example.path).duration < 9 and example.label
    assert page_lib.make_examples(str(tmp_path / "none"), str(tmp_path)) == ([], [])


def test_the_page_shares_counts_and_records_nothing():
    blocks = page_lib.Page(Script()).blocks("Bagpiper", "note", page_lib.Examples([], []))
    page_lib.application(blocks)
    config = blocks.get_config_file()
    assert not config["analytics_enabled"] and not config["stylesheets"]
    assert [c["props"]["buttons"] for c in config["components"] if c["type"] == "audio"] == [
        ["download"],
        ["download"],
    ]
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    limits = {fn.name: (fn.concurrency_id, fn.concurrency_limit) for fn in blocks.fns.values()}
    assert limits["describe"] == limits["render"] == ("engine", 1)


def test_a_port_that_is_taken_is_told_before_the_model_loads(capsys, monkeypatch):
    monkeypatch.setattr(page_lib.Pipeline, "load", lambda path: pytest.fail("it was loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert main(["demo", "--port", "70000"]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in first and "0 to 65535" in second


@pytest.fixture
def served(tmp_path):
    """The page of the mini model in a process of its own: its address, and its log when ended."""
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    command = [sys.executable, "-m", "bagpiper_jax.cli", "demo", "--port", "0"]
    with open(log, "w", encoding="utf-8") as f:
        process = subprocess.Popen(command, env=env, stdout=f, stderr=subprocess.STDOUT)
    try:
        found = wait(lambda: re.search(r"http://\S+", log.read_text()) or process.poll(), 300)
        assert isinstance(found, re.Match), log.read_text()

        def end():
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 130
            assert not [f for f in os.listdir(tmp_path / "tmp") if f.startswith("tmp")]
            return log.read_text()

        yield SimpleNamespace(url=found[0], end=end)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window, that reaches this machine alone."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync window-size=1280,1400 "
        "autoplay-policy=no-user-gesture-required"
    ).split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    window = webdriver.Chrome(options=options, service=service)
    yield window
    window.quit()


# the players keep their audio element out of the document's sight
PLAYERS = """
const found = [];
const walk = n => n.querySelectorAll("*").forEach(e => {
  if (e.tagName == "AUDIO" && e.src) found.push(e.currentTime);
  if (e.shadowRoot) walk(e.shadowRoot);
});
walk(document.querySelector("#sound"));
return Math.max(0, ...found);
"""


@pytest.mark.slow
def test_the_round_trip_in_a_browser(served, browser, tmp_path):
    find = lambda query: browser.find_elements("css selector", query)  # noqa: E731
    caption = lambda: find("#caption textarea")[0].get_property("value")  # noqa: E731
    path = page_lib.make_examples(CORPUS, str(tmp_path)).clips[1].path
    browser.get(served.url)
    wait(lambda: find("#clip input[type=file]")[0]).send_keys(path)
    assert "4.8 s" in wait(lambda: find("#before figcaption")[0].text)
    find("button#describe")[0].click()
    assert '"two four five zero"' in wait(lambda: caption().endswith(".") and caption())
    assert not find("#plan textarea")  # this model makes none

    box = find("#caption textarea")[0]
    edited = caption().replace('"two four five zero"', EDITED)
    box.clear()
    box.send_keys(edited)
    find("button#render")[0].click()
    assert "The rendering" in wait(lambda: find("#after figcaption")[0].text)
    assert caption() == edited
    wait(lambda: find("#sound button[aria-label=Play]")[0]).click()
    assert wait(lambda: browser.execute_script(PLAYERS) > 0.3)

    box.clear()
    box.send_keys(" ")
    find("button#render")[0].click()
    assert "no caption" in wait(lambda: find(".toast-body")[0].text)

    urls = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    ]
    local = (served.url, "data:", f"blob:{served.url}", "chrome")
    assert [url for url in urls if not url.startswith(local)] == []
    assert len(urls) > 20
    log = served.end().splitlines()
    assert log[-1] == "bagpiper: interrupted" and len(log) == 3, log


def wait(of, seconds=120):
    """The first true value of `of()`; an element that is not there yet is waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = of()
        except IndexError:
            value = None
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"it did not come within {seconds} s")
