"""`python -m stage2_distill init`: first configs for a data set, and why each value is there."""
