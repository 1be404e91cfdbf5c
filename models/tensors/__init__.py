"""Weights in safetensors files, and their way to the devices."""
