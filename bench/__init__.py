"""Speed and memory of kdgen, always next to a baseline taken in the same run: `python -m bench`."""
