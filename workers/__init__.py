"""Plain worker classes that decode and track, and the executors that run them."""
