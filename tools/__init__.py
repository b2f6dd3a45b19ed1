"""Scripts for the people who work on the project; no package imports them."""
