"""Count the failures of environments: what is printed of them, and when they end the run. Free of torch."""

from __future__ import annotations

import re
from collections import Counter, deque

from sfactory.monitor.format import percent
from sfactory.monitor.table import EPISODES_IN_SHARE

FIRST_STEP_FAILURES = 20
"""Failures without one good step after which a run ends: an environment of which every second step fails would have 20
in a row once in a million starts."""
ENOUGH_FAILURES = 1000
"""A rate is judged after so many failures, or after as many as the budget allows in a million steps if these are fewer.
Without one complete episode between them, so many in a million steps end the run too."""
PER_STEPS = 1_000_000
WARNING_SHARE = 0.05
"""Share of broken episodes above which a line warns, once."""
LOGGED = 100  # failures of one reason that have a line each in log.txt
REASONS = 50  # that are told apart; a reason may hold numbers that are never the same
CONSOLE_LINES = 40  # of a traceback

_POSITION = re.compile(r" \(seed -?\d+, step \d+ of the episode(?:, action .*)?\)$")
_ENVIRONMENT = re.compile(r"^environment \d+: ")
_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)
_NUMBER = re.compile(r"\d+")


def is_env_fault(text: str) -> bool:
    """Whether a fault is one of an environment, and not the exit of a worker."""
    return _ENVIRONMENT.match(text) is not None


class EnvFaults:
    """Failures of the environments of one launch.

    budget: `env.fault_budget`. num_envs: environments of the run.
    """

    def __init__(self, budget: int, num_envs: int) -> None:
        self.budget = budget
        self.allowed = min(budget, ENOUGH_FAILURES)
        self.window = PER_STEPS * self.allowed // budget if budget else PER_STEPS
        # Of many environments the first episodes to end are the broken ones.
        self.enough_episodes = max(100, 2 * num_envs)
        self.steps = self.failures = 0  # of the launch
        self.first = ""  # reason of the first failure
        self._recent: deque[list[int]] = deque()  # [steps, failures] of messages, as many as the window needs
        self._recent_sums = [0, 0]
        self._steps_without_episode = self._failures_without_episode = 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._ends: deque[bool] = deque(maxlen=max(EPISODES_IN_SHARE, self.enough_episodes))
        self._warned = False

    # -- counting ------------------------------------------------------------------------------------------------

    def add_episodes(self, complete: int) -> None:
        """Count complete episodes."""
        self._steps_without_episode = self._failures_without_episode = 0
        self._ends.extend([False] * complete)

    def add_steps(self, steps: int, failures: int) -> None:
        """Count good steps, and episodes that were cut."""
        self.steps, self.failures = self.steps + steps, self.failures + failures
        self._steps_without_episode += steps
        self._failures_without_episode += failures
        if self._steps_without_episode > PER_STEPS:
            self._steps_without_episode = self._failures_without_episode = 0
        self._ends.extend([True] * failures)
        if self._recent and self._recent[-1][0] < self.window // 100:  # few entries, whatever the messages
            self._recent[-1][0] += steps
            self._recent[-1][1] += failures
        else:
            self._recent.append([steps, failures])
        self._add_recent(steps, failures)
        while self._recent_sums[0] - self._recent[0][0] >= self.window:
            old_steps, old_failures = self._recent.popleft()
            self._add_recent(-old_steps, -old_failures)

    def _add_recent(self, steps: int, failures: int) -> None:
        self._recent_sums[0] += steps
        self._recent_sums[1] += failures

    # -- what is printed -----------------------------------------------------------------------------------------

    def lines(self, text: str) -> tuple[str, str]:
        """(text for log.txt, text for the console) of a failure; either may be empty.

        The first one of a reason is printed with its traceback. Of later ones log.txt has one line each, up to LOGGED,
        and the console a line when their number reaches 10, 100, 1000 and so on.
        """
        first_line, _, trace = text.partition("\n")
        self.first = self.first or first_line
        reason = self._reason(first_line, trace)
        self._reasons[reason] += 1
        self._examples.setdefault(reason, first_line)
        count = self._reasons[reason]
        if count == 1:
            note = "it is replaced (log.txt has more; later ones like this are counted here)"
            return text, with_traceback(f"{first_line}; {note}\n{trace}")
        what = _POSITION.sub("", _ENVIRONMENT.sub("", first_line))
        total = f"environments failed {count:,} times like this: {what}" if _is_power_of_ten(count) else ""
        return "\n".join(filter(None, (first_line if count <= LOGGED else "", total))), total

    def _reason(self, first_line: str, trace: str) -> str:
        """What failures have in common: type of the error and place in the code; where there is none, the words."""
        words = _NUMBER.sub("#", _POSITION.sub("", _ENVIRONMENT.sub("", first_line)))
        frames = _FRAME.findall(trace)
        reason = f"{words.partition(':')[0]} {frames[-1]}" if frames else words
        return reason if reason in self._reasons or len(self._reasons) < REASONS else "more reasons"

    def warning(self) -> str:
        """A line if many of the recent episodes are broken, once; else empty."""
        if self._warned or len(self._ends) < self.enough_episodes or self.problem():
            return ""
        share = sum(self._ends) / len(self._ends)
        if share <= WARNING_SHARE:
            return ""
        self._warned = True
        return (
            f"warning: {percent(share)} of the last {len(self._ends):,} episodes were cut because their environment "
            "failed; no return has them, so a policy may gain by breaking the environment (curve: faults/broken_share)"
        )

    # -- the end of the run --------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the failures end the run, in one sentence; empty if they do not."""
        if not self.first:  # it is reported right after the numbers
            return ""
        if not self.steps and self.failures >= FIRST_STEP_FAILURES:
            return f"no environment got past its first step, {self.failures} failures; the first: {self.first}"
        steps, failures = self._recent_sums
        if failures > self.allowed:
            times = f"more than {self.allowed:,} times in {steps:,} steps"
            rate = f"env.fault-budget allows {self.budget:,} per million"
            return f"environments failed {times} ({rate}), mostly: {self._usual}"
        if self._failures_without_episode > ENOUGH_FAILURES:
            times = f"more than {ENOUGH_FAILURES:,} times without one complete episode"
            return f"environments failed {times}, mostly: {self._usual}"
        return ""

    @property
    def _usual(self) -> str:
        """The first failure of the most frequent reason."""
        return self._examples[self._reasons.most_common(1)[0][0]]


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and set(str(count)[1:]) == {"0"} and str(count)[0] == "1"


def with_traceback(text: str) -> str:
    """A line and its traceback for the console: indented, and its first lines left out if it is long."""
    first_line, *trace = text.rstrip().splitlines()
    shown = trace[-CONSOLE_LINES:]
    left_out = [f"... {len(trace) - len(shown)} more lines in log.txt"] if len(shown) < len(trace) else []
    return "\n".join([first_line, *(f"  {line}" for line in (*left_out, *shown))])
