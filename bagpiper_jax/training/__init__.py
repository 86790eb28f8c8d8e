"""Runs: settings, optimizer, step, loop, metrics."""
