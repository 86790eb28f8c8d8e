"""Rich captions and training dialogues from language models that hear: caption, requests, traces,
assemble, judge. Each stage reads and writes JSON lines and can be run alone. Needs the extra
`simulate`."""
