"""model.pt becomes one ONNX file, in float32 or fewer bits, proven equal to torch before it is written."""
