"""Numbers while a run goes: the metrics table, writers, statistics and the live panel."""
