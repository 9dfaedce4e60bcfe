"""The validated configuration tree and the packaged presets."""
