"""Measurements of the real forwarder beside HAProxy and nginx. Not part of the installed package.

`python -m pytest bench` runs the gates, `python -m bench report` prints the tables of docs/performance.md.
"""
