"""The codecs, one module each, and the presets that choose among them. They need PyTorch."""
