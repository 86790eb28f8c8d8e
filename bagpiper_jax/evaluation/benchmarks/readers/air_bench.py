"""AIR-Bench chat: `Chat_meta.json` and a folder of recordings for each task and data set.

Source: github.com/OFA-Sys/AIR-Bench (Apache-2.0), `Inference_Chat.py` and `cal_score.py`.
"""

from __future__ import annotations

import os

from bagpiper_jax.evaluation.benchmarks.item import Item, check_audio
from bagpiper_jax.evaluation.benchmarks.readers.json_table import read_entries

FILE = "Chat_meta.json"
MEND = (
    "fetch the folder Chat of AIR-Bench's release again; a recording that the release itself "
    f"damaged (some of SpokenWOZ are) must be taken out of {FILE}"
)
CATEGORIES = {  # `task_name` → what scores are averaged over
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}


def read_air_bench_chat(path: str) -> list[Item]:
    """The questions; `extra["meta_info"]` describes the recording to the judge.

    Args:
      path: the folder `Chat`, or its JSON file. Recordings are in `TASK_DATASET/` beside it.

    Raises:
      UserError: the file, an entry or a recording is missing or damaged.
    """
    file = os.path.join(path, FILE) if os.path.isdir(path) else path
    folder = os.path.dirname(os.path.abspath(file))
    items: list[Item] = []
    for number, entry in enumerate(read_entries(file, MEND)):
        task, dataset = entry.text("task_name"), entry.text("dataset_name")
        if task not in CATEGORIES:
            raise entry.damaged(f"task_name {task!r} is none of {', '.join(CATEGORIES)}")
        audio = os.path.join(folder, f"{task}_{dataset}", entry.text("path"))
        check_audio(audio, entry.where, MEND)
        own = entry.get("uniq_id")
        extra = {"task_name": task, "dataset_name": dataset, "meta_info": entry.text("meta_info")}
        items.append(
            Item(
                str(number if own is None else own),
                audio,
                entry.text("question"),
                (),
                entry.text("answer_gt"),
                CATEGORIES[task],
                extra,
            )
        )
    return items
