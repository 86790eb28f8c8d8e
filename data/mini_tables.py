"""Which clips the mini corpus takes from which package, and how they are cut and named."""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Debian packages, with the version that was used.
PACKAGES = {
    "asterisk-core-sounds-en": "1.6.1-1",
    "asterisk-core-sounds-en-g722": "1.6.1-1",
    "asterisk-moh-opsound-g722": "2.03-1.1",
    "sonic-pi-samples": "3.2.2~repack-8",
    "openttd-opensfx": "1.0.3-2",
    "flite": "2.2-5",
    "libflite1": "2.2-5",
}
HIBARI_VERSION = "0.2.1"

# Prompts whose recording does not say the listed text, or whose text is not plain words.
SKIP_PROMPTS = frozenset(
    """
    spy-dahdi spy-h323 spy-iax2 spy-iax spy-mgcp spy-misdn spy-nbs spy-sip spy-unistim spy-skinny
    spy-jingle spy-zap spy-usbradio digits/a-m digits/p-m digits/h-40 digits/oh letters/zed
    confbridge-binaural-off confbridge-binaural-on confbridge-begin-glorious-b
    confbridge-begin-glorious-c unidentified-no-callback
    vm-tocancel dir-multi2 dir-multi1 vm-rec-busy confbridge-join confbridge-leave
    """.split()
)

# Said by every synthetic voice; each is also a recorded phrase.
SHARED_PHRASES = """
thank you
please try again
one moment please
hello world
goodbye
no more messages
message deleted
please check the number and dial again
the conference is now locked
you are now muted
something is terribly wrong
weasels have eaten our phone system
they have been carried away by monkeys
welcome to the directory
all circuits are busy now
that pin is invalid for this conference
monday
friday
january
august
tomorrow
yesterday
your message has been saved
thank you for your patience
please hold while i try that extension
do not disturb
""".strip().splitlines()

# voice: (speaker as named by the package, split)
FLITE_VOICES = {
    "slt": ("CMU ARCTIC speaker slt, Carnegie Mellon University", "train"),
    "rms": ("CMU ARCTIC speaker rms, Carnegie Mellon University", "train"),
    "awb": ("CMU ARCTIC speaker awb, Carnegie Mellon University", "test"),
}

# label: ((item, start s, length s, split), ...); an item that is a number is an index into the
# OpenSFX catalogue, any other a Sonic Pi sample. Takes of one label are different recordings
# except where start times differ, which are disjoint stretches of one recording.
SOUNDS = {
    "a bass drum": (
        ("drum_heavy_kick", 0, 1, "train"),
        ("drum_bass_hard", 0, 1, "train"),
        ("drum_bass_soft", 0, 1, "test"),
    ),
    "a snare drum": (
        ("drum_snare_hard", 0, 1, "train"),
        ("sn_dolf", 0, 1, "train"),
        ("drum_snare_soft", 0, 1, "test"),
    ),
    "a tom drum": (
        ("drum_tom_lo_hard", 0, 1, "train"),
        ("drum_tom_mid_hard", 0, 1, "train"),
        ("drum_tom_hi_hard", 0, 1, "test"),
    ),
    "a cymbal crash": (
        ("drum_cymbal_hard", 0, 1.6, "train"),
        ("drum_splash_hard", 0, 2, "train"),
        ("drum_splash_soft", 0, 1.8, "test"),
    ),
    "a hi-hat": (("drum_cymbal_closed", 0, 1, "train"), ("drum_cymbal_pedal", 0, 1, "test")),
    "a drum roll": (("drum_roll", 0.3, 2.4, "train"), ("drum_roll", 3.2, 2.4, "test")),
    "a cowbell": (("drum_cowbell", 0, 1, "train"),),
    "a tabla hit": (
        ("tabla_tun1", 0, 1.6, "train"),
        ("tabla_ghe3", 0, 1.6, "train"),
        ("tabla_tun3", 0, 1.6, "test"),
    ),
    "a ringing bell": (("perc_bell", 0, 3, "train"),),
    "an electric guitar": (
        ("guit_em9", 0, 3, "train"),
        ("guit_e_fifths", 0, 3, "train"),
        ("guit_e_slide", 0, 3, "test"),
    ),
    "a synth bass": (
        ("bass_hard_c", 0, 1.5, "train"),
        ("bass_thick_c", 0, 2, "train"),
        ("bass_trance_c", 0, 2, "test"),
    ),
    "a choir": (("ambi_choir", 0, 1.6, "train"),),
    "a finger snap": (("perc_snap", 0, 1, "train"), ("perc_snap2", 0, 1, "test")),
    "a cash register": (("perc_till", 0, 2, "train"), (20, 0, 1.5, "test")),
    "a burp": (("misc_burp", 0, 1, "train"),),
    "a cawing crow": (("misc_crow", 0, 1, "train"),),
    "vinyl hiss": (("vinyl_hiss", 0.5, 2.5, "train"), ("vinyl_hiss", 4.5, 2.5, "test")),
    "a record scratch": (("vinyl_scratch", 0, 1, "train"), ("vinyl_backspin", 0, 1, "test")),
    "an electronic beep": (("elec_beep", 0, 1, "train"), ("elec_ping", 0, 1, "test")),
    "birdsong": ((66, 0, 2.2, "train"), (72, 0, 3, "test")),
    "a ship horn": ((6, 0, 2.4, "train"), (7, 0, 3, "test")),
    "a steam whistle": ((4, 0, 2.1, "train"), (5, 0, 2.2, "train"), (3, 0, 2.3, "test")),
    "a jet taking off": ((9, 0, 3, "train"), (61, 0, 3, "train"), (59, 0.5, 3, "test")),
    "a propeller plane": ((8, 0, 3, "train"), (69, 0.5, 3, "test")),
    "a bus pulling away": ((27, 0, 2.8, "train"), (28, 0, 2.7, "test")),
    "applause": ((29, 0, 1.8, "train"), (29, 1.9, 1.75, "test")),
    "a level crossing bell": ((14, 0, 2.8, "train"),),
    "an explosion": ((18, 0, 1.6, "train"),),
    "morse code": ((22, 0, 1.5, "train"),),
    "a helicopter": ((24, 0, 2.4, "train"),),
    "a jackhammer": ((33, 0, 2.5, "train"),),
    "a car horn": ((35, 0, 1, "train"),),
    "a bleating sheep": ((36, 0, 1.3, "train"),),
    "a mooing cow": ((37, 0, 1.5, "train"),),
    "a neighing horse": ((38, 0, 1.8, "train"),),
    "a chainsaw": ((56, 0, 2.7, "train"),),
    "howling wind": ((52, 0, 2.7, "train"),),
    "a roaring lion": ((67, 0, 2.8, "train"),),
    "screeching monkeys": ((68, 0, 1.8, "train"),),
}

# moh file: (label, title, author, start times s); the last start is the test take.
MUSIC = {
    "manolo_camp-morning_coffee": (
        "easygoing lounge music",
        "Morning Coffee",
        "Manolo Camp",
        (3, 22, 45),
    ),
    "macroform-cold_day": (
        "dark bass-heavy electronic music",
        "Cold Day",
        "Paul Shuler (Macroform)",
        (40, 100, 170),
    ),
    "macroform-the_simplicity": (
        "calm downtempo music",
        "The Simplicity",
        "Paul Shuler (Macroform)",
        (30, 110, 190),
    ),
    "reno_project-system": ("energetic driving music", "System", "Reno Project", (30, 130, 230)),
    "macroform-robot_dity": (
        "playful synthesizer music",
        "Robot Dity",
        "Paul Shuler (Macroform)",
        (12, 70, 140),
    ),
}
MUSIC_SECONDS = 18.0

# Sonic Pi loops long enough for a bed: label -> ((sample, split), ...)
LOOPS = {
    "a drum loop": (("loop_amen_full", "train"),),
    "tabla drumming": (("loop_tabla", "train"),),
}

NOTICE_HEAD = """# Licences of the mini corpus

Written by `data/build_mini.py` from the packages' own credit files. Every clip's source, title,
author and licence is also in `clips.tsv`. Clips under a share-alike licence stay under it.
All clips were mixed to mono, resampled to 16 kHz and coded as Ogg/Opus (lossy).

| identifier | text |
|---|---|
| CC0-1.0 | <https://creativecommons.org/publicdomain/zero/1.0/> |
| CC-BY-3.0 | <https://creativecommons.org/licenses/by/3.0/> |
| CC-BY-SA-3.0 | <https://creativecommons.org/licenses/by-sa/3.0/> |
| Apache-2.0 | <https://www.apache.org/licenses/LICENSE-2.0> |
| MIT-Festival | <https://spdx.org/licenses/MIT-Festival.html> |
"""

# package: (what it is, what was changed)
SPEECH_CHANGES = "silence at both ends cut, 5 ms fades, levels made equal."
NOTICES = {
    "asterisk-core-sounds-en-g722": (
        "Recorded prompts of the Asterisk telephone exchange, spoken by Allison Smith; "
        "financial contributions by Digium, Inc. Texts from the package asterisk-core-sounds-en.",
        SPEECH_CHANGES,
    ),
    "asterisk-moh-opsound-g722": (
        "Music on hold of the Asterisk telephone exchange.",
        "excerpts of 18 s, 50 ms fades, levels made equal.",
    ),
    "sonic-pi-samples": (
        "Samples of the Sonic Pi music environment, dedicated to the public domain.",
        "shortened, silence at both ends cut, faded, peak set to -6 dBFS (loops: level set).",
    ),
    "openttd-opensfx": (
        "OpenSFX, the sound set of OpenTTD. The collection as a whole is under CC-BY-SA-3.0; "
        "the licence of each clip is the one named inside the archive.",
        "shortened, silence at both ends cut, faded, peak set to -6 dBFS.",
    ),
    "flite": (
        "Synthetic speech made for this corpus with the voices of CMU Flite (Carnegie Mellon "
        "University). The voices' licence is the permissive one of Flite.",
        SPEECH_CHANGES,
    ),
    "hibari-tts": (
        "Synthetic speech made for this corpus with hibari, a text-to-speech model distilled "
        "from Kokoro-82M (hexgrad, Apache-2.0).",
        SPEECH_CHANGES,
    ),
}
