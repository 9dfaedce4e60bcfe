"""Metrics of tracking and segmentation in video: pure functions on plain arrays, and their application to runs."""
