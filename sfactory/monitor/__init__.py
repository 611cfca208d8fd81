"""Metrics during a run: the metrics table, writers, statistics and the live panel."""
