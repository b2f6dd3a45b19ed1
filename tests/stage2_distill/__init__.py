"""Tests of the package stage2_distill."""
