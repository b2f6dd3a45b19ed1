"""Distillation methods: the losses of each as plain functions on tensors, and what they train."""
