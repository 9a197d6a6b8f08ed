"""The loop, its steps and what survives a crash: plain torch, no Ray. Read `loop.py` first."""
