"""Live streams: events, sinks, supervision of cameras, the web page. ``masklet stream`` is :mod:`.command`."""
