"""Pictures of a run, for people who look before they read: annotated video, contact sheet, timeline."""

from __future__ import annotations

from pipeline.render.overlay import render

__all__ = ["render"]
