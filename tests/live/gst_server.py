"""An RTSP server by GStreamer, which we did not write: ``/usr/bin/python3 gst_server.py [FILE]``.

Serves the camera ``/cam0`` on a port of the system, takes a stream in at ``/in`` and writes its H.264 to FILE, and
prints ``ready PORT``. Runs under the system's Python: Debian's GObject
bindings are not in a virtual environment.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=192,framerate=10/1 ! videoconvert "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


RECORDER = (
    "( rtph264depay name=depay0 ! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au "
    "! filesink location={} buffer-mode=unbuffered )"
)


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE)
    factory.set_shared(True)
    server.get_mount_points().add_factory("/cam0", factory)
    if len(sys.argv) > 1:
        recorder = GstRtspServer.RTSPMediaFactory()
        recorder.set_launch(RECORDER.format(sys.argv[1]))
        recorder.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
        server.get_mount_points().add_factory("/in", recorder)
    server.attach(None)
    print(f"ready {server.get_bound_port()}", flush=True)
    GLib.timeout_add_seconds(60, lambda: sys.exit(0))
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
