"""`bagpiper demo`: a page of the round trip, clip → caption → clip.

The page is Gradio's. It asks for nothing from other hosts, and what is recorded or uploaded lies in
a temporary directory that goes with the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import fastapi
import gradio as gr
import numpy as np
import uvicorn

from bagpiper_jax.audio import SAMPLE_RATE, decode_audio, save_audio
from bagpiper_jax.errors import UserError
from bagpiper_jax.html_report.media import spectrogram
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.replies import split_plan
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import Scene, plan_scene, render_scene
from bagpiper_jax.release import MINI
from bagpiper_jax.serving.address import bound, url

# scenes of the development split: digits, sounds and digits, sounds, speech over music
_CLIPS = (6, 4, 8, 7)
_CAPTIONS = (3, 4, 8)
_MAX_UPLOAD = "64mb"
_MINI_NOTE = (
    "This is the **mini model** (10 MB), trained on scenes of up to 8 seconds: digits and letters "
    "said one by one, recorded phrases, sounds, music. It hears them; a voice that it was not "
    "trained on it hardly understands. Digits that it renders can be understood; letters and "
    "phrases cannot."
)
_NO_CLIP, _NO_RENDERING = "<p>No clip yet</p>", "<p>No rendering yet</p>"
_WAVEFORM = gr.WaveformOptions(waveform_progress_color="#3b82f6")  # the blue of the buttons
_STYLE = """
.picture figcaption { color: var(--block-label-text-color); }
.picture figure { margin: 0; } .picture img { display: block; width: 100%; height: auto; }
.picture p { margin: 0; padding: 40px 12px; text-align: center;
  color: var(--body-text-color-subdued); }
.head h1 { margin-bottom: 4px; }
"""


class ExampleClip(NamedTuple):
    """A scene as a file, and what is heard in it."""

    path: str
    label: str


class Examples(NamedTuple):
    """What the page offers to start with."""

    clips: list[ExampleClip]
    captions: list[str]


def make_examples(corpus_dir: str, out: str) -> Examples:
    """Writes a few development scenes as files in `out`; nothing where there is no corpus."""
    if not os.path.isdir(corpus_dir):
        return Examples([], [])
    corpus = load_corpus(corpus_dir)
    clips = []
    for index in _CLIPS:
        scene = plan_scene(corpus, 0, index, "dev", "scene")
        path = os.path.join(out, f"scene_{index}.wav")
        save_audio(path, render_scene(corpus, scene))
        clips.append(ExampleClip(path, _label(scene)))
    captions = [plan_scene(corpus, 0, index, "dev", "scene").caption for index in _CAPTIONS]
    return Examples(clips, captions)


def _label(scene: Scene) -> str:
    heard = [event.label or f"“{event.text}”" for event in scene.events]
    return ", ".join(heard + ([scene.bed.label] if scene.bed else []))


class Page:
    """What the buttons do.

    A bad input raises `gr.Error`, which the page shows; nothing goes to the log.
    """

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        # one request at a time drives the engine, also where the page of another was closed
        self._engine = threading.Lock()

    def look(self, clip: str | None) -> str:
        """A clip's file → its spectrogram, HTML."""
        if clip is None:
            return _NO_CLIP
        with _told():
            return _picture(_read(clip), "The clip")

    def describe(
        self, clip: str | None, temperature: float, seed: float | None
    ) -> Iterator[tuple[str, Any]]:
        """A clip's file → its caption and the plan before it, as they grow."""
        with _told():
            if clip is None:
                raise UserError("there is no clip: record or upload one")
            heard = [self._pipeline.listen(_read(clip))]
            sampling = self._sampling("text", temperature=temperature)
            text = ""
            with self._engine:
                stream = self._pipeline.stream(
                    heard, modalities=("text",), sampling=sampling, seed=_seed(seed)
                )
                with contextlib.closing(stream):
                    for delta in stream:
                        text += delta.text
                        plan, answer = split_plan(text)
                        yield answer, gr.update(value=plan, visible=bool(plan))

    def render(
        self, caption: str, cfg: float, temperature: float, seed: float | None
    ) -> tuple[tuple[int, np.ndarray], str]:
        """A caption → (rate, int16 [S]) and the spectrogram, HTML."""
        with _told():
            sampling = self._sampling("audio", cfg=cfg, temperature=temperature)["audio"]
            with self._engine:
                wav = self._pipeline.render(caption or "", sampling=sampling, seed=_seed(seed))
        # Gradio would bring floats to full scale
        samples = (np.clip(np.asarray(wav), -1, 1) * 32767).astype(np.int16)
        return (wav.sample_rate, samples), _picture(wav, "The rendering")

    def _sampling(self, modality: str, **values: float) -> dict:
        return {modality: dataclasses.replace(self._pipeline.sampling[modality], **values)}

    def blocks(self, title: str, note: str, examples: Examples) -> gr.Blocks:
        """The page itself; `note` is Markdown."""
        audio, text = self._pipeline.sampling["audio"], self._pipeline.sampling["text"]
        with gr.Blocks(title=title, analytics_enabled=False) as blocks:
            gr.Markdown(f"# Bagpiper\n{note}", elem_classes="head")
            with gr.Row():
                with gr.Column(min_width=300):
                    clip = gr.Audio(
                        label="Clip, 0.1 to 30 s",
                        sources=["upload", "microphone"],
                        type="filepath",
                        buttons=["download"],
                        waveform_options=_WAVEFORM,
                        elem_id="clip",
                    )
                    describe = gr.Button("Describe", variant="primary", elem_id="describe")
                    if examples.clips:
                        gr.Examples(
                            [[e.path] for e in examples.clips],
                            [clip],
                            label="Example clips",
                            example_labels=[e.label for e in examples.clips],
                        )
                with gr.Column(min_width=300):
                    plan = gr.Textbox(label="Plan", visible=False, lines=3, elem_id="plan")
                    caption = gr.Textbox(
                        label="Caption: edit it, then render it",
                        placeholder="Describe a clip, or write what is to be heard",
                        lines=6,
                        max_lines=16,
                        elem_id="caption",
                    )
                    render = gr.Button("Render", variant="primary", elem_id="render")
                    if examples.captions:
                        gr.Examples(
                            [[c] for c in examples.captions], [caption], label="Example captions"
                        )
            with gr.Row():
                with gr.Column(min_width=300):
                    before = gr.HTML(_NO_CLIP, elem_id="before", elem_classes="picture")
                    with gr.Accordion("Settings", open=False):
                        cfg = gr.Slider(1, 8, audio.cfg, step=0.1, label="Guidance (1 is none)")
                        warmth = _temperature("Temperature, audio", audio)
                        variety = _temperature("Temperature, text", text)
                        seed = gr.Number(
                            0,
                            label="Seed",
                            info="It changes nothing at temperature 0.",
                            precision=0,
                            minimum=0,
                        )
                with gr.Column(min_width=300):
                    after = gr.HTML(_NO_RENDERING, elem_id="after", elem_classes="picture")
                    sound = gr.Audio(
                        label="Rendering",
                        interactive=False,
                        buttons=["download"],
                        waveform_options=_WAVEFORM,
                        elem_id="sound",
                    )

            # one request at a time: the second of two people waits, and sees that it does
            alone = {"concurrency_id": "engine", "concurrency_limit": 1}
            private = {"api_visibility": "private"}
            clip.change(self.look, clip, before, show_progress="hidden", **private)
            describe.click(
                self.describe, [clip, variety, seed], [caption, plan], **alone, **private
            )
            render.click(
                self.render, [caption, cfg, warmth, seed], [sound, after], **alone, **private
            )
        return blocks


def serve(checkpoint: str, corpus_dir: str, host: str, port: int) -> None:
    """Opens the page and serves it until it is interrupted.

    Raises:
      UserError: the checkpoint does not load, or the port cannot be had.
    """
    with bound(host, port) as listener, tempfile.TemporaryDirectory() as folder:
        # so that the clips are removed then, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os.environ["GRADIO_TEMP_DIR"] = folder
        pipeline = Pipeline.load(checkpoint)
        print("bagpiper: compiling the model", flush=True)
        pipeline.warm_up()
        page = Page(pipeline)
        mini = os.path.realpath(checkpoint) == os.path.realpath(MINI)
        name = os.path.basename(os.path.abspath(checkpoint))
        note = _MINI_NOTE if mini else f"The model is `{name}`."
        app = application(page.blocks("Bagpiper", note, make_examples(corpus_dir, folder)))
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        print(f"bagpiper: {url(listener)}", flush=True)
        uvicorn.Server(settings).run([listener])


def application(blocks: gr.Blocks) -> fastapi.FastAPI:
    """The page as an ASGI application: fonts of the system, nothing from other hosts."""
    system, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gr.themes.Default(
        primary_hue="blue",
        font=[gr.themes.Font(name) for name in system],
        font_mono=[gr.themes.Font(name) for name in mono],
    )
    return gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        theme=theme,
        css=_STYLE,
        footer_links=[],
        run_history=False,
        max_file_size=_MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """`UserError` → a message of the page."""
    try:
        yield
    except UserError as e:
        raise gr.Error(html.escape(str(e)), print_exception=False) from None


def _read(clip: str) -> np.ndarray:
    """A file that the page has taken → float32 [S] at 16 kHz; messages hide its place."""
    try:
        with open(clip, "rb") as f:
            data = f.read()
    except OSError as e:
        raise UserError("the clip is gone: record or upload it again") from e
    return decode_audio(data, os.path.basename(clip))


def _seed(value: float | None) -> int:
    if value is None or value < 0:
        raise UserError("the seed is missing: give a whole number, 0 or more")
    return int(value)


def _temperature(label: str, sampling: Sampling) -> gr.Slider:
    return gr.Slider(0, 1.5, sampling.temperature, step=0.05, label=label)


def _picture(wav: np.ndarray, words: str) -> str:
    """A clip's spectrogram with its length, HTML."""
    words = html.escape(f"{words}, {len(wav) / SAMPLE_RATE:.1f} s")
    image = f'<img alt="Spectrogram: {words}" src="{spectrogram(wav)}">'
    return f"<figure><figcaption>{words}</figcaption>{image}</figure>"
