"""Configuration: our own nodes, the safe YAML loader, and the YAML files themselves.

`configs.nodes` needs the standard library alone; `configs.loader` needs detectron2.
"""
