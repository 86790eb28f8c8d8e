"""One file per benchmark: its released form on disk → a list of `Item`."""
