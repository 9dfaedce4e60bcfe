"""Pictures of a run, for people who look before they read: annotated video, contact sheet, timeline."""

from __future__ import annotations

from pipeline.render.overlay import render
from pipeline.render.sheet import contact_sheet
from pipeline.render.timeline import timeline

__all__ = ["contact_sheet", "render", "timeline"]
