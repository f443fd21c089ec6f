"""Views of the numbers of a run, which may fail without harm: TensorBoard, and Weights & Biases."""
