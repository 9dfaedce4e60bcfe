"""Where frames come from: files and everything that names them, live feeds."""
