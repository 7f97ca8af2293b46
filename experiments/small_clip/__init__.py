"""The small CLIP that comes with this project: how it was pre-trained (clip/small.md)."""
