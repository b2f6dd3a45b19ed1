"""Configuration: the schema of our own nodes, the safe YAML loader, and the YAML files themselves.

`configs.schema` needs the standard library alone; `configs.loader` needs detectron2.
"""
