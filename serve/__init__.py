"""A champion behind HTTP, on Ray Serve: `python serve/app.py`, or `serve.app:build_app` for a Serve config."""
