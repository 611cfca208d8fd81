"""Telemetry messages: what workers send to the supervisor."""

from __future__ import annotations

from typing import Any

Message = tuple[str, str, Any]
"""(kind, worker, payload)."""
