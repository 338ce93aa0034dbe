"""TensorRT and TensorRT-RTX: build, cache and run engines."""
