"""Image datasets: sources, the cache of resized images, and the data module."""
