"""The timeline of a run: all stages of all workers in the Trace Event Format."""

import itertools
import json

from sfactory.tools import timeline
from sfactory.tools.timeline import Span
from sfactory.workers.worker import Stages


def test_timeline_reads_consecutive_spans_of_a_worker(tmp_path):
    stages = Stages(tmp_path / "inference.stages")
    for stage in ("look", "forward", "look"):
        stages.mark(stage)
    total = sum(stages.drain().values())
    stages.mark("wait")
    stages.drain()
    (tmp_path / "inference.stages").open("a").write('[1.0, [["torn')
    spans = timeline.read(tmp_path)
    assert {span.worker for span in spans} == {"inference"}
    assert [span.stage for span in spans] == ["look", "forward", "look", "wait"]
    assert all(one.end == other.begin for one, other in itertools.pairwise(spans))
    assert abs(sum(span.end - span.begin for span in spans[:3]) - total) < 1e-9


def test_stages_without_a_file_record_nothing(tmp_path):
    stages = Stages()
    stages.mark("look")
    stages.drain()
    assert stages._marks == []


SPANS = [
    Span("sampler-10", "env_step", 2.0, 2.5),
    Span("sampler-2", "env_step", 1.0, 1.75),
    Span("sampler-2", "wait", 1.75, 2.0),
    Span("learner", "update", 1.0, 3.0),
]


def test_trace_events_have_a_process_per_worker_and_microseconds():
    trace = json.loads(json.dumps(timeline.trace_events(SPANS)))
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["sampler-2", "sampler-10", "learner"]
    wait = next(e for e in trace["traceEvents"] if e["name"] == "wait")
    assert (wait["ph"], wait["pid"], wait["ts"], wait["dur"]) == ("X", 1, 750_000.0, 250_000.0)


def test_timeline_table_covers_the_last_seconds():
    assert timeline.last(SPANS, 1.0) == [SPANS[0], SPANS[2], SPANS[3]]
    assert timeline.last([], 1.0) == []
    lines = timeline.table(SPANS).splitlines()
    assert lines[1] == "sampler-2"
    assert lines[2].split()[:3] == ["env_step", "75.0%", "1"]
